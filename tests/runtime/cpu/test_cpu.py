"""The CPU profile: what dies, hangs or is wrong is found in a child process, kept, and avoided."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hybrid_rt.cpu import (
    CpuProfile,
    cache,
    cpu_profile,
    instruction_set,
    probe,
    process,
    why_unusable,
)
from hybrid_rt.cpu.probe import CAP, CAP_VARIABLE, Child, run_child
from hybrid_rt.cpu.probe_graph import probe_graph, probe_inputs
from hybrid_rt.errors import UsageError

ROOT = Path(__file__).parents[3]
COMBINATIONS = ["openvino fp32", "openvino bf16", "openvino int8", "openvino int8+bf16"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No profile of this machine, and none left behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (process.OVERRIDE, instruction_set.SET_BY_US, CAP_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    cache.kept_profile.cache_clear()
    yield
    cache.kept_profile.cache_clear()


class FakeChildren:
    """``faults`` maps a combination to what becomes of a child that tries it uncapped."""

    def __init__(self, faults, capped_faults=()):
        self.faults, self.capped_faults = dict(faults), dict(capped_faults)
        self.calls = []

    def __call__(self, combinations, environment):
        capped = environment.get(CAP_VARIABLE) == CAP
        self.calls.append((list(combinations), capped))
        faults = self.capped_faults if capped else self.faults
        child = Child()
        for name in combinations:
            child.trying = name
            fault = faults.get(name)
            if fault == "died":
                child.code = -4
                return child
            if fault == "hung":
                child.hung = True
                return child
            if fault in ("wrong", "failed"):
                child.problems[name] = probe.Measurement(status=fault, detail="cosine 0.1")
            else:
                child.ran.append(name)
        child.trying = "timing"
        child.milliseconds = dict.fromkeys(child.ran, 20.0 if capped else 10.0)
        return child


def statuses(profile):
    return {name: measurement.status for name, measurement in profile.measurements.items()}


def test_a_healthy_cpu_is_probed_once_and_needs_no_cap():
    children = FakeChildren({})
    profile = probe.probe(["openvino"], {}, run=children)
    assert profile.cap is None
    assert statuses(profile) == dict.fromkeys(COMBINATIONS, "ran")
    assert children.calls == [(COMBINATIONS, False)]


@pytest.mark.parametrize("fault", ["died", "hung", "wrong"])
def test_a_fault_that_the_cap_cures_is_capped(fault):
    children = FakeChildren(dict.fromkeys(COMBINATIONS[1:], fault))
    profile = probe.probe(["openvino"], {}, run=children)
    assert profile.cap == CAP
    assert statuses(profile) == dict.fromkeys(COMBINATIONS, "ran")
    assert profile.measurements["openvino bf16"].capped
    assert "openvino bf16" in profile.note
    assert ("SIGILL" in profile.note) == (fault == "died")


def test_fault_that_no_cap_cures_leaves_the_rest():
    faults = {"openvino bf16": "died", "openvino int8+bf16": "hung"}
    children = FakeChildren(faults, faults)
    profile = probe.probe(["openvino"], {}, run=children)
    assert profile.cap is None
    assert statuses(profile) == {
        "openvino fp32": "ran",
        "openvino bf16": "died",
        "openvino int8": "ran",
        "openvino int8+bf16": "hung",
    }
    assert "ends the process on this CPU (SIGILL)" in profile.why_not("openvino", "bf16")
    assert profile.why_not("openvino", "int8") is None


def test_what_does_not_run_is_no_reason_for_a_cap():
    profile = probe.probe(["openvino"], {}, run=FakeChildren({"openvino bf16": "failed"}))
    assert profile.cap is None
    assert statuses(profile)["openvino bf16"] == "failed"
    assert not profile.runs("openvino", "bf16")


def child_that(body, monkeypatch):
    """Real child processes that run ``body`` in place of the workload."""
    source = "import json, os, signal, sys, time\ndef say(**v): print(json.dumps(v), flush=True)\n"

    def command(module, *arguments):
        return [sys.executable, "-c", source + body, module, *arguments]

    monkeypatch.setattr(probe, "child_command", command)


def test_child_killed_by_sigill_is_read(monkeypatch):
    body = f"""
for name in sys.argv[2:]:
    say(trying=name)
    if name != "openvino fp32" and "{CAP_VARIABLE}" not in os.environ:
        os.kill(os.getpid(), signal.SIGILL)
    say(ran=name)
say(trying="timing")
print("a library's own line")
say(milliseconds=dict.fromkeys(sys.argv[2:], 5))
"""
    child_that(body, monkeypatch)
    profile = probe.probe(["openvino"], dict(os.environ))
    assert profile.cap == CAP
    assert "openvino bf16 died (SIGILL)" in profile.note
    assert statuses(profile) == dict.fromkeys(COMBINATIONS, "ran")


def test_a_child_that_hangs_is_ended(monkeypatch):
    child_that("say(trying=sys.argv[2]); time.sleep(600)", monkeypatch)
    monkeypatch.setattr(probe, "LIMIT", 1.0)
    child = run_child(COMBINATIONS, dict(os.environ))
    assert child.hung
    assert child.trying == "openvino fp32"


def test_the_profile_is_kept_and_read_again(monkeypatch, tmp_path):
    children = FakeChildren({})
    monkeypatch.setattr(cache, "probe", lambda *a: probe.probe(*a, run=children))
    first = cpu_profile("openvino")
    assert first.origin == "probed"
    cache.kept_profile.cache_clear()  # as another process would find it
    again = cpu_profile("openvino")
    assert again.origin == "cached"
    assert again.measurements == first.measurements
    assert len(children.calls) == 1
    monkeypatch.setenv("LD_PRELOAD", "")  # in the key
    cache.kept_profile.cache_clear()
    assert cpu_profile("openvino").origin == "probed"
    for kept in (tmp_path / "cache" / "hybrid-rt").glob("*.json"):
        kept.write_text("{", encoding="utf-8")
    cache.kept_profile.cache_clear()
    assert cpu_profile("openvino").origin == "probed", "a damaged file is replaced"


def test_without_child_processes_only_fp32_runs(monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    profile = cpu_profile()
    assert profile.origin == "fallback"
    assert profile.runs("openvino", "fp32")
    assert not profile.runs("openvino", "bf16")
    assert "only fp32 is used" in caplog.text
    assert "no child process" in why_unusable("openvino", "int8")


def test_override_off_and_by_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv(process.OVERRIDE, "off")
    assert cpu_profile().runs("openvino", "bf16")
    assert cpu_profile().milliseconds("openvino", "bf16") is None
    path = tmp_path / "cpu.json"
    known = FakeChildren({})
    path.write_text(json.dumps(probe.probe(["openvino"], {}, run=known).to_dict()))
    monkeypatch.setenv(process.OVERRIDE, str(path))
    assert cpu_profile().milliseconds("openvino", "int8") == 10
    assert cpu_profile().origin == "file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("[1]", "no CPU profile"),
        ("{", "no CPU profile"),
        ('{"measurements": {"tpu int4": {"status": "ran"}}}', "'tpu int4'"),
        ('{"measurements": {"openvino int8": {"status": "quick"}}}', "no status of ran, died"),
        (
            '{"measurements": {"openvino int8": {"status": "ran", "milliseconds": "2"}}}',
            "expected a positive number",
        ),
    ],
)
def test_bad_override_is_a_usage_error(text, message, monkeypatch, tmp_path):
    path = tmp_path / "cpu.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv(process.OVERRIDE, str(path))
    with pytest.raises(UsageError, match=message):
        cpu_profile()


CAPPED = {
    "cap": CAP,
    "note": f"without {CAP_VARIABLE}={CAP}: openvino bf16 died (SIGILL)",
    "measurements": {
        f"{library} {precision}": {"status": "ran", "milliseconds": ms, "capped": True}
        for library, precision, ms in (
            ("openvino", "fp32", 16),
            ("openvino", "bf16", 35),
            ("openvino", "int8", 9),
            ("openvino", "int8+bf16", 20),
            ("onnxruntime", "fp32", 18),
            ("onnxruntime", "int8", 13),
            ("torch", "fp32", 20),
            ("torch", "bf16", 60),
        )
    },
}


@pytest.fixture
def capped_machine(tmp_path, monkeypatch):
    """Child processes that find a profile of a CPU which needs the cap."""
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(CAPPED))
    environment = {k: v for k, v in os.environ.items() if k != CAP_VARIABLE}
    folders = (ROOT, ROOT / "export", ROOT / "train")
    paths = os.pathsep.join(map(str, folders))

    def run(code, *arguments, **variables):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**environment, process.OVERRIDE: str(path), "PYTHONPATH": paths, **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")

    return run


OPEN = """
import os, sys
from hybrid_rt import HybridEngine, DeviceError
for precision in ("fp32", "bf16"):
    try:
        with HybridEngine(sys.argv[1], backend="openvino", precision=precision) as engine:
            print(precision, engine.info["detail"])
    except DeviceError as err:
        print(precision, err)
print(os.environ.get("ONEDNN_MAX_CPU_ISA"))
"""


def test_the_cap_is_set_before_openvino_is_imported(bundle_folder, capped_machine):
    fp32, bf16, cap, _ = capped_machine(OPEN, bundle_folder / "model.onnx")
    assert fp32.startswith("fp32 CPU f32")
    assert "ends the process" not in bf16
    assert cap == CAP


def test_a_library_imported_too_early_is_refused(bundle_folder, capped_machine):
    lines = capped_machine("import openvino" + OPEN, bundle_folder / "model.onnx")
    assert lines[0].startswith("fp32 CPU f32")
    assert "bf16 on openvino ends the process on this CPU" in lines[1]
    assert f"start the process with {CAP_VARIABLE}={CAP} in its environment" in lines[1]
    allowed = capped_machine(
        "import openvino" + OPEN, bundle_folder / "model.onnx", **{CAP_VARIABLE: CAP}
    )
    assert "ends the process" not in allowed[1]
    late = f"import openvino, os; os.environ['{CAP_VARIABLE}'] = '{CAP}'"
    lines = capped_machine(late + OPEN, bundle_folder / "model.onnx")
    assert "bf16 on openvino ends the process on this CPU" in lines[1]


CHOOSE = """
import sys
from hybrid_rt import HybridEngine
with HybridEngine(sys.argv[1]) as engine:
    print(engine.info["path"].split("/")[-1], engine.info["backend"], engine.info["detail"])
    print(engine.info["reason"])
"""


def test_a_folder_avoids_what_would_die(bundle_folder, with_files, capped_machine):
    with_files(bundle_folder, int8=("int8", True))
    chosen, reason, _ = capped_machine(CHOOSE, bundle_folder)
    assert chosen.startswith("model.int8.onnx openvino CPU f32")
    assert "int8 on openvino 9.0 ms" in reason
    chosen, reason, _ = capped_machine("import openvino" + CHOOSE, bundle_folder)
    assert chosen.startswith("model.int8.onnx onnxruntime")
    assert "int8 on onnxruntime 13.0 ms" in reason


PRECISION = """
import torch
from hybrid_train.loop.optimizer import choose_precision
from hybrid_rt import UsageError
for asked in ("auto", "bf16", "fp32"):
    try:
        print(choose_precision(asked, torch.device("cpu")))
    except UsageError as err:
        print(err)
"""


def test_training_takes_bf16_only_if_it_ran_faster(capped_machine):
    auto, bf16, fp32, _ = capped_machine("import hybrid_train" + PRECISION)
    assert (auto, bf16, fp32) == ("fp32", "bf16", "fp32")
    auto, bf16, fp32, _ = capped_machine(PRECISION)
    assert (auto, fp32) == ("fp32", "fp32")
    assert "bf16 on torch ends the process on this CPU" in bf16


def test_many_processes_probe_once(tmp_path, monkeypatch):
    code = (
        "import logging; logging.basicConfig(level='INFO'); from hybrid_rt.cpu import cpu_profile; "
        "print(cpu_profile('onnxruntime').runs('onnxruntime', 'fp32'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    ended = [process.communicate(timeout=300) for process in started]
    assert [out.strip() for out, _ in ended] == ["True"] * 4, ended
    assert sum("CPU profile (" in err for _, err in ended) == 1, ended


def test_the_probes_network_is_valid_and_right(monkeypatch):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    outputs = {}
    for int8 in (False, True):
        data, expected = probe_graph(int8=int8)
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model, full_check=True)
        operators = {node.op_type for node in model.graph.node}
        assert ("QuantizeLinear" in operators) == int8
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        outputs[int8] = session.run(None, probe_inputs())
        gap = np.abs(outputs[int8][0] - expected).max()
        print(f"int8 {int8}: product max_diff={gap:.1e}")
        assert gap < (0.05 if int8 else 1e-4)
    for fp32, int8 in zip(outputs[False], outputs[True], strict=True):
        cosine = float(np.vdot(fp32, int8) / np.linalg.norm(fp32) / np.linalg.norm(int8))
        assert cosine > 0.999


def test_wrong_numbers_are_found(monkeypatch):
    from hybrid_rt.cpu import workload

    right = workload._open_onnxruntime("fp32")()
    monkeypatch.setattr(workload, "_fp32_outputs", [])
    assert workload._wrong(right, "fp32") is None
    monkeypatch.setattr(workload, "_fp32_outputs", [])
    assert "product" in workload._wrong([-right[0], *right[1:]], "fp32")
    monkeypatch.setattr(workload, "_fp32_outputs", right)
    wrong = [*right[:2], np.full_like(right[2], np.nan), right[3]]
    assert "stage0" in workload._wrong(wrong, "bf16")


def test_profile_survives_json():
    profile = CpuProfile.from_dict(CAPPED, origin="file")
    again = CpuProfile.from_json(json.dumps(profile.to_dict()), origin="file")
    assert again == profile
    assert "ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16 is needed" in profile.summary()
