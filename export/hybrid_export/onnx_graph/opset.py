"""ONNX opsets that an export can be written in."""

from __future__ import annotations

from hybrid_rt.errors import UsageError

#: LayerNormalization is one operator from opset 17, which every TensorRT from 8.6 on reads; 8.6
#: reads none above.
MIN_OPSET, MAX_OPSET, DEFAULT_OPSET = 17, 23, 17


def check_opset(opset: int) -> None:
    """Raise UsageError if the opset is out of range."""
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise UsageError(
            f"opset is {opset}; expected {MIN_OPSET} to {MAX_OPSET}: below, LayerNormalization is "
            f"not one operator; leave --opset out for {DEFAULT_OPSET}"
        )
