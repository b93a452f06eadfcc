"""The command: files, parity reports, retries, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import numpy_helper

from factories.tiny_hybrid import make_model
from hybrid_export import pipeline
from hybrid_export.artifacts import write_onnx
from hybrid_export.bundle import staging
from hybrid_export.cli import main
from hybrid_export.onnx_graph.io import load
from hybrid_export.parity.tolerances import TOLERANCES
from hybrid_rt import HybridEngine
from hybrid_rt.bundle.manifest import Bundle
from hybrid_rt.bundle.validated import cpu_reports
from hybrid_rt.cpu import why_unusable
from hybrid_rt.errors import ExportError
from hybrid_rt.images import load_pixels
from hybrid_rt.spec import ModelSpec
from hybrid_train.model.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def exported(tmp_path_factory, checkpoint, image_folder):
    output = tmp_path_factory.mktemp("exported")
    arguments = [str(checkpoint), "--output", str(output), "--verify", str(image_folder)]
    assert main([*arguments, "--fp16", "--bf16", "--no-tensorrt"]) == 0
    return output


def test_writes_a_validated_bundle(exported, tiny_model):
    bundle = Bundle.load(exported)
    assert list(bundle.files) == ["model.onnx", "model.fp16.onnx", "model.bf16.onnx"]
    for name, entry in bundle.files.items():
        bundle.check(name)
        assert entry.validated, name
        assert entry.parity_report["images"] == 12
        assert entry.parity_report["auroc"] is not None
    assert bundle.files["model.fp16.onnx"].source == "model.onnx"
    assert bundle.files["model.fp16.onnx"].dtype_report["weight_share"]["float16"] >= 0.95
    assert [o.name for o in bundle.spec.outputs] == ["probabilities", "logits", "features"]
    size = {name: entry.bytes for name, entry in bundle.files.items()}
    assert size["model.fp16.onnx"] < 0.56 * size["model.onnx"]


def test_the_runtime_takes_it_as_it_is(exported, tiny_model, image_folder):
    model, spec = tiny_model
    files = sorted(image_folder.rglob("*.png"))[:3]
    pixels = np.stack([load_pixels(f, spec.preprocess) for f in files])
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).numpy()
    with HybridEngine(exported / "model.onnx", device="cpu") as engine:
        got = engine.predict(files)
        engine.selftest()
    assert [p.label for p in got] == [spec.classes[i] for i in logits.argmax(1)]


def test_golden_images_are_the_verified_ones(exported, tiny_model):
    golden = Bundle.load(exported).load_golden()
    assert len(golden.names) == 8
    pixels = np.stack([load_pixels(data, tiny_model[1].preprocess) for data in golden.encoded])
    with torch.no_grad():
        logits = tiny_model[0](torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).numpy()
    assert float(np.abs(golden.logits - logits).max()) < 1e-5


def test_a_second_export_replaces_the_first(traced, exported, checkpoint, image_folder, tmp_path):
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "notes.txt").write_text("mine")
    code = main([str(checkpoint), "--output", str(tmp_path), "--verify", str(image_folder)])
    assert code == 0
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [
        "MODEL_CARD.md",
        "model.golden.npz",
        "model.json",
        "model.onnx",
        "notes.txt",
    ]


def test_a_failing_file_is_not_written(
    traced, monkeypatch, checkpoint, image_folder, tmp_path, capsys
):
    genuine = pipeline.to_onnx

    def sabotaged(graph, spec, **options):
        model = genuine(graph, spec, **options)
        name = next(
            n.input[1] for n in model.graph.node if n.name == "/vit.blocks.2.mlp.fc2/MatMul"
        )
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor) * np.float32(1.05)
        tensor.CopyFrom(numpy_helper.from_array(array, name))
        return model

    monkeypatch.setattr(pipeline, "to_onnx", sabotaged)
    code = main([str(checkpoint), "--output", str(tmp_path), "--verify", str(image_folder)])
    message = capsys.readouterr().err
    assert code == 1
    assert "model.onnx does not equal PyTorch: logits differ by" in message
    assert ".png: logits off by" in message, "the images"
    assert "first layer that differs: vit.blocks.2.mlp" in message, "the layers"
    assert "Traceback" not in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_fp16_keeps_in_fp32_what_overflows(checkpoint, image_folder, tmp_path, capsys):
    """A residual stream that grows beyond 65504, as in large trained ViTs."""
    model, spec = make_model()
    with torch.no_grad():
        model.vit.blocks[1].mlp.fc2.bias[0] += 3e5
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, model, spec)
    output = tmp_path / "out"
    code = main(
        [
            str(path),
            "--output",
            str(output),
            "--verify",
            str(image_folder),
            "--fp16",
            "--no-tensorrt",
        ]
    )
    assert code == 0, capsys.readouterr().err
    report = Bundle.load(output).files["model.fp16.onnx"].parity_report
    assert report["passed"] is True
    assert report["kept_fp32"][0].startswith("values beyond 16376")


def test_fp16_that_cannot_pass_falls_back_to_bf16(
    traced, monkeypatch, checkpoint, image_folder, tmp_path, capsys
):
    monkeypatch.setitem(TOLERANCES, "fp16", replace(TOLERANCES["fp16"], logits_max_abs=1e-7))
    code = main(
        [str(checkpoint), "--output", str(tmp_path), "--verify", str(image_folder), "--fp16"]
    )
    captured = capsys.readouterr()
    assert code == 1
    assert "model.fp16.onnx does not equal PyTorch" in captured.err
    assert "kept in FP32: residual additions, head" in captured.out
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "MODEL_CARD.md",
        "model.bf16.onnx",
        "model.golden.npz",
        "model.json",
        "model.onnx",
    ]
    assert list(Bundle.load(tmp_path).files) == ["model.onnx", "model.bf16.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--opset", "12"], "opset is 12; expected 17 to 23"),
        (["--max-batch", "0"], "--max-batch is 0; expected 1 to"),
        (["--max-batch", "4", "--opt-batch", "5"], "--opt-batch is 5; expected 1 to --max-batch"),
        (["--int8"], "best.safetensors came without them"),
        (["--calibrate", "x"], "--calibrate is for --int8"),
        (["--verify", "nowhere"], "nowhere does not exist; expected a folder of images"),
    ],
)
def test_wrong_usage(arguments, message, checkpoint, tmp_path, capsys):
    code = main([str(checkpoint), "--output", str(tmp_path / "out"), *arguments])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "model.json").exists()


_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from hybrid_export.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run_without_torch(folder, *arguments):
    """Run the command in a process that cannot import PyTorch."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _WITHOUT_TORCH, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=60
    )


@pytest.mark.parametrize("arguments", [["--opset", "12"], ["--verify-limit", "1"]])
def test_wrong_options_end_before_torch(arguments, tmp_path):
    done = run_without_torch(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert "expected" in done.stderr
    assert done.stderr.count("\n") == 1


def test_public_names_are_imported_when_used():
    code = (
        "import sys, hybrid_export; from hybrid_export import ExportOptions; "
        "print('torch' in sys.modules); from hybrid_export import export; "
        "print('torch' in sys.modules, callable(export))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == ["False", "True", "True"]


@pytest.mark.parametrize("name", ["run", "run/best.safetensors", "bare.pth"])
def test_int8_without_images_ends_before_torch(name, checkpoint, tmp_path):
    """A run of an older version keeps validation images only."""
    (tmp_path / "run" / "validation").mkdir(parents=True)
    (tmp_path / "run" / "validation" / "labels.json").write_text("[]")
    shutil.copy(checkpoint, tmp_path / "run")
    (tmp_path / "bare.pth").write_bytes(b"weights")
    done = run_without_torch(tmp_path, str(tmp_path / name), "--int8")
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path / name} came without them" in done.stderr
    assert "Add --calibrate DATA, a few dozen training images, or train again" in done.stderr
    assert done.stderr.count("\n") == 1


def test_int8_of_the_newest_run_needs_its_images(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "old").mkdir(parents=True)
    shutil.copy(checkpoint, tmp_path / "runs" / "old")
    monkeypatch.chdir(tmp_path)
    assert main(["--int8"]) == 2
    captured = capsys.readouterr()
    assert "runs/old came without them" in captured.err
    assert not captured.out, "no work was done"


def test_a_missing_checkpoint(tmp_path, capsys):
    assert main([str(tmp_path / "none.safetensors"), "--output", str(tmp_path / "out")]) == 2
    assert "none.safetensors" in capsys.readouterr().err


def test_classes_that_do_not_fit_the_weights(tiny_model, tmp_path, capsys):
    model, spec = tiny_model
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, model, spec.replace(classes=("benign", "malignant")))
    assert main([str(path), "--output", str(tmp_path / "out")]) == 2
    assert "classes" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(checkpoint, tmp_path, capsys):
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert main([str(checkpoint), "--output", str(blocker / "out")]) == 2
    assert "expected a folder that you may write to" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(
    traced, monkeypatch, checkpoint, image_folder, tmp_path, capsys
):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_onnx, "save", full)
    code = main([str(checkpoint), "--output", str(tmp_path), "--verify", str(image_folder)])
    assert code == 1
    error = capsys.readouterr().err
    assert "is full" in error
    assert "nothing was changed there" in error
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_removed(tmp_path):
    left = tmp_path / ".hybrid-export-999999999"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    with staging.staging(tmp_path) as folder:
        assert not left.exists()
        (folder / "model.onnx").write_bytes(b"new")
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_leaves_nothing(tmp_path):
    def fail():
        with staging.staging(tmp_path) as folder:
            (folder / "model.onnx").write_bytes(b"half")
            raise ExportError("stop")

    with pytest.raises(ExportError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


# A shell that starts a command in the background has it ignore SIGINT: here it must not.
_INTERRUPTED = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from hybrid_export.bundle.staging import staging
with staging(Path(sys.argv[1])) as folder:
    (folder / "model.onnx").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(number, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.wait(30)
    process.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_the_old_bundle_whole(exported, tmp_path):
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait(30)
    process.stdout.close()
    bundle = Bundle.load(tmp_path)
    for name in bundle.files:
        bundle.check(name)


def test_model_json_names_what_was_measured(exported):
    data = json.loads((exported / "model.json").read_text())
    report = data["files"]["model.fp16.onnx"]["parity_report"]
    assert "every result rounded to its type" in report["measured_with"]
    assert report["tolerances"]["logits_max_abs"] >= 2e-2
    fp32 = data["files"]["model.onnx"]["parity_report"]
    assert fp32["measured_with"].startswith("onnxruntime 1.")
    assert {other["measured_with"].split()[0] for other in fp32["also"]} == {"openvino"}
    spec = {p.key: p.value for p in load(exported / "model.fp16.onnx").metadata_props}
    assert ModelSpec.from_json(spec["hybrid_rt.spec"]).classes[0] == "benign"


def test_model_onnx_is_validated_with_the_bf16_hint(exported, monkeypatch):
    """The obvious export is fast: no option is needed for what OpenVINO does by itself."""
    reason = why_unusable("openvino", "bf16")
    if reason:
        pytest.skip(reason)
    entry = Bundle.load(exported).files["model.onnx"]
    check = cpu_reports(entry)["openvino", "bf16"]
    assert check["images"] == entry.parity_report["images"], "all images, not the first few"
    assert 1e-5 < check["logits_max_abs"] <= TOLERANCES["bf16"].logits_max_abs, "bf16 really ran"
    monkeypatch.setenv("HYBRID_RT_CPU_PROFILE", "off")  # the fastest by name
    with HybridEngine(exported / "model.onnx") as engine:
        assert "CPU bf16" in engine.info["detail"]
        assert engine.selftest().tolerance == check["tolerances"]["logits_max_abs"]
