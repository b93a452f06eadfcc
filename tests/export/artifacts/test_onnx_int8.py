"""INT8: calibrated Q/DQ that every library runs, validated, with sensitive layers left out."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from factories.tiny_hybrid import write_images
from hybrid_export import pipeline
from hybrid_export.artifacts import write_onnx
from hybrid_export.cli import main
from hybrid_export.onnx_graph.evaluator import RoundingEvaluator
from hybrid_export.onnx_graph.io import load
from hybrid_export.parity.tolerances import TOLERANCES
from hybrid_export.precision.activation_ranges import measure_ranges
from hybrid_export.precision.fallback import int8_attempts, nodes_of, quantizable, sensitivity
from hybrid_export.precision.quantize import layers, quantize
from hybrid_rt import HybridEngine
from hybrid_rt.bundle.manifest import Bundle
from hybrid_rt.cpu import why_unusable


@pytest.fixture(scope="module")
def run(tmp_path_factory, checkpoint):
    """A run folder that kept 16 training images."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(checkpoint, folder)
    kept = write_images(folder / "calibration", 16, seed=1)
    labels = [{"file": p.name, "label": p.parent.name} for p in sorted(kept.rglob("*.png"))]
    for path in kept.rglob("*.png"):
        path.rename(kept / path.name)
    (kept / "labels.json").write_text(json.dumps(labels))
    return folder


@pytest.fixture(scope="module")
def exported_and_log(tmp_path_factory, run, image_folder, tiny_onnx):
    """The bundle of ``--int8`` without ``--calibrate``, and what the command printed."""
    folder = tmp_path_factory.mktemp("int8")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(pipeline, "to_onnx", lambda *_, **__: load(tiny_onnx))
        arguments = [str(run), "--output", str(folder), "--verify", str(image_folder)]
        assert main([*arguments, "--int8", "--no-tensorrt"]) == 0
    return folder, printed.getvalue()


@pytest.fixture(scope="module")
def output(exported_and_log):
    return exported_and_log[0]


def export(checkpoint, image_folder, folder):
    arguments = [str(checkpoint), "--output", str(folder), "--verify", str(image_folder)]
    return main([*arguments, "--int8", "--calibrate", str(image_folder), "--no-tensorrt"])


@pytest.fixture(scope="module")
def calibrated_model(tiny_onnx, output):
    """The fp32 graph, ranges measured on noise, and the noise."""
    model = load(tiny_onnx)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), np.uint8)
    activations = {layer.activation for layer in layers(model)}
    return model, measure_ranges(model, activations, pixels), pixels


def test_calibrates_on_the_runs_training_images(exported_and_log, run):
    line = f"Calibrating INT8 on 16 training images of {run / 'calibration'}\n"
    assert line in exported_and_log[1], "and not: it is validated on some of them too"


def test_the_file_is_validated_and_mostly_int8(output):
    entry = Bundle.load(output).files["model.int8.onnx"]
    assert entry.validated
    assert entry.precision == "int8"
    assert entry.parity_report["kept_fp32"]
    assert entry.dtype_report["weight_share"]["int8"] > 0.5
    assert entry.dtype_report["layers"]["convolution"]["int8"] >= 3
    assert entry.dtype_report["layers"]["matmul"]["int8"] >= 3


def test_weights_are_symmetric_and_per_channel(output):
    model = onnx.load(str(output / "model.int8.onnx"))
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    kernels = 0
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in values:
            continue
        weight, scale, zero = (values[name] for name in node.input)
        assert weight.dtype == np.int8
        assert scale.ndim == 1, "one scale a channel"
        assert len(scale) in weight.shape
        assert not zero.any()
        kernels += 1
    assert kernels >= 6


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_libraries_agree(output, image_folder, backend):
    files = sorted(image_folder.rglob("*.png"))
    with HybridEngine(output / "model.int8.onnx", backend=backend) as engine:
        got = np.stack([p.logits for p in engine.predict(files)])
    with HybridEngine(output / "model.onnx", backend="onnxruntime") as engine:
        expected = np.stack([p.logits for p in engine.predict(files)])
    gap = np.abs(got - expected).max()
    assert 1e-4 < gap < TOLERANCES["int8"].logits_max_abs, "rounded, and not by too much"


def checks_in_bf16(folder):
    also = Bundle.load(folder).files["model.int8.onnx"].parity_report["also"]
    return [check for check in also if "bf16" in check["measured_with"]]


def need_bf16():
    reason = why_unusable("openvino", "bf16")
    if reason:
        pytest.skip(reason)


def test_the_rest_runs_in_bf16_where_that_was_validated(output, monkeypatch):
    need_bf16()
    monkeypatch.setenv("HYBRID_RT_CPU_PROFILE", "off")  # preferred without a measured speed
    (check,) = checks_in_bf16(output)
    assert check["passed"]
    assert check["images"] == 12
    with HybridEngine(output / "model.int8.onnx", backend="openvino") as engine:
        assert "CPU bf16," in engine.info["detail"]


def test_bf16_that_fails_costs_the_file_nothing(
    traced, monkeypatch, checkpoint, image_folder, tmp_path, capsys
):
    need_bf16()
    monkeypatch.setenv("HYBRID_RT_CPU_PROFILE", "off")
    genuine = write_onnx.compare

    def strict(session, reference, spec, tolerances, **options):
        if "bf16" in session.detail:
            tolerances = replace(tolerances, logits_max_abs=1e-7)
        return genuine(session, reference, spec, tolerances, **options)

    monkeypatch.setattr(write_onnx, "compare", strict)
    assert export(checkpoint, image_folder, tmp_path) == 0
    assert "model.int8.onnx: not validated with the bf16 hint: logits" in capsys.readouterr().out
    assert Bundle.load(tmp_path).files["model.int8.onnx"].validated
    assert not checks_in_bf16(tmp_path)
    with HybridEngine(tmp_path / "model.int8.onnx", backend="openvino") as engine:
        assert "CPU f32," in engine.info["detail"]


def lower_with(model, ranges):
    """The function that quantizes all but the nodes that are kept."""
    names = {node.name for node in model.graph.node}
    return lambda kept: quantize(model, ranges, names.difference(kept))


def test_attempts_leave_out_the_worst_modules_first(calibrated_model):
    model, ranges, pixels = calibrated_model
    lower = lower_with(model, ranges)
    attempts = list(int8_attempts(model, lower, pixels))
    assert len(attempts) >= 3
    sizes = [len(attempt.nodes) for attempt in attempts]
    assert sizes == sorted(sizes)
    ranked = [name for name, _ in sensitivity(model, lower, pixels, attempts[0].nodes)]
    left_out = attempts[1].kept[len(attempts[0].kept) :]
    assert left_out == (ranked[0],)
    assert nodes_of(model, ranked[0]) <= attempts[1].nodes
    assert quantizable(model).isdisjoint(attempts[0].nodes)


def test_a_module_with_an_outlier_is_found_sensitive(calibrated_model):
    """One activation a thousand times the others makes their steps coarse."""
    model, ranges, pixels = calibrated_model
    chosen = quantizable(model)
    kept = {node.name for node in model.graph.node} - chosen
    victim = next(layer for layer in layers(model) if layer.node.name in chosen)
    name = victim.activation
    spoiled = replace(ranges, largest={**ranges.largest, name: 1e3 * ranges.largest[name]})
    worst, moved = sensitivity(model, lower_with(model, spoiled), pixels, kept)[0]
    assert victim.node.name in nodes_of(model, worst)
    assert moved > 2 * dict(sensitivity(model, lower_with(model, ranges), pixels, kept))[worst]


def test_quantizing_nothing_changes_nothing(calibrated_model):
    model, ranges, pixels = calibrated_model
    same = RoundingEvaluator(quantize(model, ranges, set())).run(pixels)["logits"]
    np.testing.assert_array_equal(same, RoundingEvaluator(model).run(pixels)["logits"])


def test_nothing_is_written_where_no_attempt_passes(
    traced, monkeypatch, checkpoint, image_folder, tmp_path, capsys
):
    monkeypatch.setitem(TOLERANCES, "int8", replace(TOLERANCES["int8"], logits_max_abs=1e-9))
    assert export(checkpoint, image_folder, tmp_path) == 1
    captured = capsys.readouterr()
    line = f"INT8 on 12 images of {image_folder}; it is validated on 12 of them too"
    assert line in captured.out, "those of --calibrate, which are those of --verify"
    assert "model.int8.onnx does not equal PyTorch" in captured.err
    assert not (tmp_path / "model.int8.onnx").exists()
