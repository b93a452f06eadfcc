"""One contract, every backend: the same images through each, alone and together, gaps printed."""

import dataclasses
import itertools

import numpy as np
import onnx
import pytest

from factories.parity_reports import parity_report
from hybrid_rt import HybridEngine
from hybrid_rt.backends.gpu_support import onnxruntime_has_gpu
from hybrid_rt.backends.openvino import OpenVinoSession
from hybrid_rt.backends.registry import is_installed
from hybrid_rt.bundle.manifest import Bundle, BundleFile
from hybrid_rt.bundle.validated import cpu_reports
from hybrid_rt.cpu import why_unusable
from tools.backend_contract import check_contract, run_alone

#: Every way this machine has to run an ONNX file, with the largest gap of a logit allowed.
WAYS = {
    "onnxruntime cpu": ({"backend": "onnxruntime", "device": "cpu"}, 1e-5),
    "openvino cpu": ({"backend": "openvino", "device": "cpu"}, 1e-5),
    "openvino cpu throughput": ({"backend": "openvino", "mode": "throughput"}, 1e-5),
    "openvino cpu bf16": ({"backend": "openvino", "precision": "bf16"}, 5e-2),
    "onnxruntime cuda": ({"backend": "onnxruntime", "device": "cuda:0"}, 1e-3),
    "onnxruntime tensorrt": ({"backend": "onnxruntime-tensorrt", "device": "cuda:0"}, 1e-2),
}


def ways_here():
    for name, (arguments, tolerance) in WAYS.items():
        if not is_installed(arguments["backend"]):
            continue
        if "cuda" in arguments.get("device", "") and not onnxruntime_has_gpu():
            continue
        if arguments.get("precision") == "bf16" and why_unusable("openvino", "bf16"):
            continue
        yield name, arguments, tolerance


@pytest.fixture(scope="module")
def outputs_alone(tiny_onnx, pixels):
    return run_alone(tiny_onnx, pixels)


@pytest.mark.parametrize(
    ("arguments", "tolerance"),
    [pytest.param(a, tolerance, id=n) for n, a, tolerance in ways_here()],
)
def test_backend_keeps_the_contract(tiny_onnx, pixels, outputs_alone, arguments, tolerance):
    check_contract(tiny_onnx, pixels, outputs_alone, arguments, tolerance)


def test_every_file_of_a_bundle(bundle_folder, with_files, images):
    with_files(bundle_folder, int8=("int8", True))
    predictions = {}
    for name in Bundle.load(bundle_folder).files:
        for backend in ("onnxruntime", "openvino"):
            with HybridEngine(bundle_folder / name, backend=backend) as engine:
                predictions[name, backend] = engine.predict(images).logits
    for a, b in itertools.combinations(predictions, 2):
        gap = np.abs(predictions[a] - predictions[b]).max()
        print(f"{a} {b}: max_diff={gap:.1e}")
        assert gap <= 1e-5


def test_precision_by_parity_report(bundle_folder, with_files):
    """bf16 runs where the file says so, and only there, or where a caller asks for it."""
    reason = why_unusable("openvino", "bf16")
    if reason:
        pytest.skip(reason)
    with_files(bundle_folder, bf16=("bf16", True))
    for name, precision, expected in (
        ("model.onnx", None, "f32"),
        ("model.onnx", "auto", "f32"),
        ("model.onnx", "bf16", "bf16"),
        ("model.bf16.onnx", None, "bf16"),
        ("model.bf16.onnx", "fp32", "f32"),
    ):
        with HybridEngine(bundle_folder / name, backend="openvino", precision=precision) as engine:
            assert f"CPU {expected}," in engine.info["detail"]


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        (None, set()),
        ({"passed": True}, set()),
        ({"passed": True, "backend": "openvino", "device": "cuda:0"}, set()),
        (parity_report(), {("onnxruntime", "fp32"), ("openvino", "fp32")}),
        (parity_report(passed=False), set()),
        (parity_report(bf16=False), {("onnxruntime", "fp32"), ("openvino", "fp32")}),
        (
            {**parity_report(bf16=True), "passed": False},
            {("openvino", "fp32"), ("openvino", "bf16")},
        ),
        ({**parity_report(), "also": "openvino"}, {("onnxruntime", "fp32")}),
    ],
)
def test_combinations_come_from_passed_checks(checks, expected):
    entry = BundleFile(
        sha256="0" * 64, bytes=1, format="onnx", precision="fp32", parity_report=checks
    )
    assert set(cpu_reports(entry)) == expected
    int8 = dataclasses.replace(entry, precision="int8", parity_report=parity_report(bf16=True))
    assert ("openvino", "int8+bf16") in cpu_reports(int8)


def test_openvino_cache_is_kept_when_asked(tiny_folder, tmp_path, pixels, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes((tiny_folder / "model.onnx").read_bytes())
    with HybridEngine(path, backend="openvino") as engine:
        expected = engine.predict(pixels).logits
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    with HybridEngine(path, backend="openvino", cache=True) as engine:
        np.testing.assert_array_equal(engine.predict(pixels).logits, expected)
    kept = sorted((tmp_path / ".openvino-cache").iterdir())
    assert len(kept) == 2, "a batch of 1 and the usual batch"

    def read(_self):
        raise AssertionError("the ONNX file was read again")

    with monkeypatch.context() as patched:
        patched.setattr(OpenVinoSession, "_read", read)
        with HybridEngine(path, backend="openvino", cache=True) as engine:
            np.testing.assert_array_equal(engine.predict(pixels).logits, expected)
    for damage in (b"", b"not a compiled model", kept[0].read_bytes()[:1000]):
        for file in kept:
            file.write_bytes(damage)
        with HybridEngine(path, backend="openvino", cache=True) as engine:
            np.testing.assert_array_equal(engine.predict(pixels).logits, expected)


def test_another_setting_or_file_is_another_entry(tiny_folder, tmp_path, pixels):
    path = tmp_path / "model.onnx"
    path.write_bytes((tiny_folder / "model.onnx").read_bytes())
    folder = tmp_path / ".openvino-cache"
    with HybridEngine(path, backend="openvino", cache=True, batch_size=1) as engine:
        engine.predict(pixels[:1])
    assert len(list(folder.iterdir())) == 1
    with HybridEngine(path, backend="openvino", cache=True, batch_size=1, threads=1) as engine:
        engine.predict(pixels[:1])
    assert len(list(folder.iterdir())) == 2
    model = onnx.load(path)
    model.doc_string = "another file"
    onnx.save(model, path)
    with HybridEngine(path, backend="openvino", cache=True, batch_size=1) as engine:
        engine.predict(pixels[:1])
    assert len(list(folder.iterdir())) == 3
