"""Write model.int8.onnx: calibrate, then quantize."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_export.artifacts.write_onnx import write_onnx
from hybrid_export.parity.dataset import chosen_images
from hybrid_export.precision.activation_ranges import measure_ranges
from hybrid_export.precision.fallback import int8_attempts
from hybrid_export.precision.quantize import layers, quantize
from hybrid_export.state import ExportState
from hybrid_rt.bundle.golden import pixels_digest

#: Images to calibrate on; the ranges of a ViT settle within some tens of them.
CALIBRATION_LIMIT = 64


def write_int8(state: ExportState, source: Path) -> str | None:
    """Write the file; returns None, or the reason if no attempt passes.

    It is calibrated on ``--calibrate DATA``, else on training images that the run of ``source``
    kept.
    """
    pixels = calibration_pixels(state, source)
    activations = {layer.activation for layer in layers(state.fp32)}
    ranges = measure_ranges(state.fp32, activations, pixels)
    names = {node.name for node in state.fp32.graph.node}

    def lower(kept: Collection[str]) -> Any:
        return quantize(state.fp32, ranges, names.difference(kept))

    return write_onnx(state, "int8", int8_attempts(state.fp32, lower, pixels), lower)


def calibration_pixels(state: ExportState, source: Path) -> NDArray[np.uint8]:
    """Return the images to calibrate on, uint8 ``[n, height, width, 3]``, and log which."""
    data = state.options.calibrate
    images = chosen_images(data, source, "calibration", state.spec, limit=CALIBRATION_LIMIT)
    assert images is not None, "see check_calibration"
    validated = {pixels_digest(image) for image in state.reference.images.pixels}
    shared = sum(pixels_digest(image) in validated for image in images.pixels)
    what = "training images" if data is None else "images"
    note = f"; it is validated on {shared} of them too" if shared else ""
    state.log(f"Calibrating INT8 on {len(images)} {what} of {images.origin}{note}")
    return images.pixels
