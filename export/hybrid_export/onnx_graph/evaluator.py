"""Run an ONNX file operator by operator, rounding every result to its type in the graph.

No library does this, so it is written here. A GPU's tensor cores multiply FP16 numbers, add up in
FP32 and store FP16. CPU providers widen what they can and drop the roundings between. onnx's own
reference implementation is NumPy, whose FP16 matrix products use no BLAS: 197x768 by 768x768 took
17 times as long as in FP32 (on 2 CPU cores, November 2026); nor can its values be observed.

Here each operator computes in FP32 on PyTorch and its result is rounded to its declared type before
the next operator reads it. So what overflows or loses bits on a GPU does so here too. Every
intermediate value can be observed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from hybrid_export.onnx_graph.operators import OPERATORS, Operator, reference_operator
from hybrid_rt.backends.base import Outputs
from hybrid_rt.errors import ExportError

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
_FLOATS: dict[int, torch.dtype] = {
    FLOAT: torch.float32,
    FLOAT16: torch.float16,
    BFLOAT16: torch.bfloat16,
}

#: Gets a value's name and the value in fp32 (or its integer type) as it was rounded.
Observer = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Value:
    """A tensor and its ONNX element type; floating-point values are held in fp32, rounded."""

    tensor: Tensor
    type: int


@dataclass(frozen=True)
class _Step:
    node: Any
    operator: Operator | None  # None for a conversion between types
    attributes: dict[str, Any]
    dead: tuple[str, ...]  # values that no later step reads


class RoundingEvaluator:
    """An ONNX model as a Session. Weights are widened once; nothing else is kept between runs.

    Raises ExportError if an operator mixes floating-point types, which a strongly typed TensorRT
    network would refuse.
    """

    backend = "evaluator"
    device = "cpu"
    detail = (
        f"operator by operator on PyTorch {torch.__version__} CPU: products summed in fp32, every "
        "result rounded to its type in the graph"
    )

    def __init__(self, model: Any) -> None:
        self.output_names = tuple(output.name for output in model.graph.output)
        self.input = model.graph.input[0].name
        self.constants = {t.name: _constant(t) for t in model.graph.initializer}
        self._steps = _steps(model, self.constants)

    def run(self, images: NDArray[np.uint8], observe: Observer | None = None) -> Outputs:
        """See Session.run; ``observe`` gets every intermediate value."""
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        values = {**self.constants, self.input: Value(pixels, TensorProto.UINT8)}
        with torch.inference_mode():
            for step in self._steps:
                results = self._call(step, values)
                for name, value in zip(step.node.output, results, strict=False):
                    if name:
                        values[name] = value
                        if observe is not None:
                            observe(name, value.tensor)
                for name in step.dead:
                    del values[name]
        return {name: values[name].tensor.numpy() for name in self.output_names}

    def close(self) -> None:
        """See Session.close."""

    def _call(self, step: _Step, values: dict[str, Value]) -> list[Value]:
        node = step.node
        inputs = [values[name] if name else None for name in node.input]
        if step.operator is None:
            return [_CONVERSIONS[node.op_type](inputs, step.attributes)]
        kind = _float_type(node, inputs)
        tensors: list[Any] = [None if value is None else value.tensor for value in inputs]
        made = step.operator(tensors, step.attributes)
        results = made if isinstance(made, list) else [made]
        return [_rounded(result, kind) for result in results]


def _steps(model: Any, constants: dict[str, Value]) -> list[_Step]:
    last = {name: i for i, node in enumerate(model.graph.node) for name in node.input}
    kept = {output.name for output in model.graph.output} | set(constants)
    steps = []
    for i, node in enumerate(model.graph.node):
        names = {name for name in (*node.input, *node.output) if name and name not in kept}
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(attributes["value"])
            kept.add(node.output[0])
            continue
        dead = tuple(name for name in names if last.get(name, i) == i)
        operator = OPERATORS.get(node.op_type)
        if operator is None and node.op_type not in _CONVERSIONS:
            operator = reference_operator(node, model.opset_import[0].version)
        steps.append(_Step(node, operator, attributes, dead))
    return steps


def _constant(tensor: Any) -> Value:
    if tensor.data_type == BFLOAT16:
        array = numpy_helper.to_array(tensor).astype(np.float32)
    else:
        array = numpy_helper.to_array(tensor)
    value = torch.from_numpy(np.array(array))
    return Value(value.float() if tensor.data_type in _FLOATS else value, tensor.data_type)


def _float_type(node: Any, inputs: Iterable[Value | None]) -> int:
    """Return the one floating-point type of the operator's inputs; integers count as none."""
    kinds = {v.type for v in inputs if v is not None and v.type in _FLOATS}
    if len(kinds) > 1:
        names = ", ".join(sorted(TensorProto.DataType.Name(kind) for kind in kinds))
        raise ExportError(
            f"{node.name or node.op_type} mixes {names}; a strongly typed graph needs a Cast"
        )
    return kinds.pop() if kinds else FLOAT


def _rounded(tensor: Tensor, kind: int) -> Value:
    if not tensor.is_floating_point():
        return Value(tensor, helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype))
    if kind != FLOAT:
        tensor = tensor.to(_FLOATS[kind]).float()
    return Value(tensor, kind)


def _cast(inputs: list[Value | None], attributes: dict[str, Any]) -> Value:
    value, to = inputs[0], attributes["to"]
    assert value is not None
    if to in _FLOATS:
        return Value(value.tensor.to(_FLOATS[to]).float(), to)
    dtype = torch.from_numpy(np.zeros(0, helper.tensor_dtype_to_np_dtype(to))).dtype
    return Value(value.tensor.to(dtype), to)


def _along(parameter: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """Return a scale or zero point of one axis, shaped to broadcast over the tensor."""
    if parameter.ndim == 0 or parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * tensor.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def _quantize(inputs: list[Value | None], attributes: dict[str, Any]) -> Value:
    x, scale, zero = (v.tensor if v is not None else None for v in (*inputs, None)[:3])
    assert x is not None
    assert scale is not None
    axis = attributes.get("axis", 1)
    steps = torch.round(x / _along(scale, x, axis))  # to nearest, ties to even, as ONNX defines it
    if zero is not None:
        steps = steps + _along(zero, x, axis).float()
    signed = zero is not None and zero.dtype == torch.int8
    low, high, dtype = (-128, 127, torch.int8) if signed else (0, 255, torch.uint8)
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    return Value(steps.nan_to_num(0.0).clamp(low, high).to(dtype), kind)


def _dequantize(inputs: list[Value | None], attributes: dict[str, Any]) -> Value:
    x, scale = inputs[0], inputs[1]
    assert x is not None
    assert scale is not None
    axis = attributes.get("axis", 1)
    steps = x.tensor.float()
    if len(inputs) > 2 and inputs[2] is not None:
        steps = steps - _along(inputs[2].tensor, steps, axis).float()
    return _rounded(steps * _along(scale.tensor, steps, axis), scale.type)


_CONVERSIONS = {"Cast": _cast, "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize}
