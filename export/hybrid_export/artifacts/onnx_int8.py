"""model.int8.onnx: calibrate, quantize, validate, and leave out what harms until it passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_export.onnx_graph.dtype_report import graph_dtype_report
from hybrid_export.onnx_graph.evaluator import Interpreter
from hybrid_export.onnx_graph.io import save
from hybrid_export.parity.dataset import chosen_images
from hybrid_export.precision.activation_ranges import Ranges, measure_ranges
from hybrid_export.precision.fallback import Attempt, nodes_of, units
from hybrid_export.precision.half import in_module
from hybrid_export.precision.quantize import layers, quantize
from hybrid_export.runners import session
from hybrid_export.state import Job
from hybrid_rt.bundle.golden import pixels_digest
from hybrid_rt.errors import ExportError

#: Images to calibrate on; the ranges of a ViT settle within some tens of them.
CALIBRATION_LIMIT = 64
_SENSITIVITY_IMAGES = 4


def write_int8(job: Job, source: Path) -> bool:
    """Add model.int8.onnx to the job's bundle; whether an attempt passed.

    It is calibrated on ``--calibrate DATA``, else on training images that the run of ``source``
    kept.

    The attempts leave out the modules that moved the logits most: none, 1, 2, 4, 8, … of them.
    """
    pixels = calibration_pixels(job, source)
    quantizable = list(layers(job.fp32))
    ranges = measure_ranges(job.fp32, {layer.activation for layer in quantizable}, pixels)
    path = job.staged / "model.int8.onnx"
    reason = "no layer is left to quantize"
    for attempt in attempts(job.fp32, ranges, pixels):
        model = quantize(job.fp32, ranges, attempt.nodes)
        save(model, path)
        runner = session(path, job.spec)
        report = job.screen(runner, "int8")
        if report.passed:
            report = job.validate(runner, "int8", *job.openvino(path, "fp32"))
        report.kept_fp32 = list(attempt.kept)
        job.report(f"{path.name} (kept in FP32: {', '.join(attempt.kept)})", report)
        if report.passed:
            job.try_bf16(report, path, "int8")
            dtype_report = graph_dtype_report(path)
            job.add(path, "int8", report, source="model.onnx", dtype_report=dtype_report)
            return True
        reason = job.failure(path.name, report, "int8", model)
    path.unlink(missing_ok=True)
    job.failures.append(f"{reason}.")
    return False


def calibration_pixels(job: Job, source: Path) -> NDArray[np.uint8]:
    """The images to calibrate on, uint8 ``[n, height, width, 3]``; says which they are."""
    data = job.options.calibrate
    images = chosen_images(data, source, "calibration", job.spec, limit=CALIBRATION_LIMIT)
    assert images is not None, "see check_calibration"
    validated = {pixels_digest(image) for image in job.reference.images.pixels}
    shared = sum(pixels_digest(image) in validated for image in images.pixels)
    what = "training images" if data is None else "images"
    note = f"; it is validated on {shared} of them too" if shared else ""
    job.say(f"Calibrating INT8 on {len(images)} {what} of {images.origin}{note}")
    return images.pixels


def attempts(model: Any, ranges: Ranges, images: NDArray[np.uint8]) -> Iterator[Attempt]:
    """Node names to quantize, fewer with every attempt, and what stays in FP32."""
    chosen = candidates(model)
    if not chosen:
        raise ExportError("the network has no layer that can be quantized; leave --int8 out")
    always = tuple(_always_kept(model))
    yield Attempt(frozenset(chosen), always)
    ranked = [unit for unit, _ in sensitivity(model, ranges, chosen, images)]
    count = 1
    while count < len(ranked):
        left_out = ranked[:count]
        kept = {n for unit in left_out for n in nodes_of(model, unit)}
        yield Attempt(frozenset(chosen - kept), (*always, *left_out))
        count *= 2


def candidates(model: Any) -> set[str]:
    """Names of the nodes worth quantizing: nearly all of the work, none of the sensitive ends."""
    names = {layer.node.name for layer in layers(model)}
    for module in _always_kept(model):
        names -= nodes_of(model, module)
    return names


def _always_kept(model: Any) -> list[str]:
    """The first layer of each branch, which sees raw pixels, what is computed for one token, and
    the head: 3% of the work, and an error in any of them reaches the logits undiluted."""
    found = ["vit.patch_embed", "head", "explain_vit"]
    nodes = [layer.node for layer in layers(model)]
    first = next((node for node in nodes if in_module(node, "cnn")), None)
    if first is not None:
        found.append(first.name.split("/")[1])
    blocks = [unit for unit in units(model) if unit.startswith("vit.blocks.")]
    if blocks:
        found += [f"{blocks[-1]}.{name}" for name in ("attn.q", "attn.proj", "mlp")]
    return found


def sensitivity(
    model: Any, ranges: Ranges, chosen: set[str], images: NDArray[np.uint8]
) -> list[tuple[str, float]]:
    """How far the logits move when one module alone is in int8, worst first."""
    images = images[:_SENSITIVITY_IMAGES]
    expected = Interpreter(model).run(images)["logits"]
    found = []
    for unit in units(model):
        inside = chosen & nodes_of(model, unit)
        if inside:
            got = Interpreter(quantize(model, ranges, inside)).run(images)["logits"]
            found.append((unit, float(np.abs(got - expected).mean())))
    return sorted(found, key=lambda pair: -pair[1])
