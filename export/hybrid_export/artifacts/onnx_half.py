"""Write model.fp16.onnx or model.bf16.onnx."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hybrid_export.artifacts.write_onnx import write_onnx
from hybrid_export.precision.fallback import half_attempts
from hybrid_export.precision.half import HalfName, to_half
from hybrid_export.state import ExportState

#: Images on which values are looked for that leave the precision's range.
_RANGE_IMAGES = 8


def write_half(state: ExportState, precision: HalfName) -> str | None:
    """Write the file; returns None, or the reason if no attempt passes."""

    def lower(kept: Collection[str]) -> Any:
        return to_half(state.fp32, precision, kept)

    images = state.reference.images.pixels[:_RANGE_IMAGES]
    attempts = half_attempts(state.fp32, precision, lower, images)
    return write_onnx(state, precision, attempts, lower)
