"""Dtype report: what a file computes in, counted from the file itself.

report = graph_dtype_report("model.fp16.onnx")
report["weight_share"]  # {"float16": 0.998, "float32": 0.002}
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from hybrid_rt.errors import ExportError, ModelFileError
from hybrid_rt.tensorrt.builder.layer_types import ITEM_BYTES, summarize_types

#: The type that has to hold most of the weights in a file of each precision.
WEIGHT_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}

#: Share of weight bytes that has to be in the precision asked for. Normalization parameters and
#: the operations kept in FP32 are about 0.1% of the hybrid's weights.
SMALLEST_SHARE = 0.95

_WEIGHT_DTYPES = {"float64", "float32", "float16", "bfloat16", "int8", "uint8"}
_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_MATRIX_PRODUCTS = {"MatMul", "Gemm", "Attention"}

#: Weights larger than this are not needed to infer types; smaller ones may be shapes.
_LARGE_BYTES = 1024


def graph_dtype_report(onnx_path: str | os.PathLike[str]) -> dict[str, Any]:
    """Count bytes of weights, and matrix and convolution layers, by type, in an ONNX graph.

    Returns ``{"measured_on": "onnx graph", "weight_bytes": {"float16": n, …}, "weight_share":
    {"float16": 0.99, …}, "layers": {"convolution": {"float16": 53}, "matmul": {…}}}``. A layer
    whose input comes from DequantizeLinear counts as "int8". External data is not read.
    """
    path = Path(onnx_path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as err:  # protobuf's DecodeError has no public base class
        raise ModelFileError(f"{path} is not an ONNX file that can be read: {err}") from err
    weights: Counter[str] = Counter()
    for tensor in _weight_tensors(model.graph):
        dtype = _dtype_name(tensor.data_type)
        if dtype in _WEIGHT_DTYPES:
            weights[dtype] += math.prod(tensor.dims) * ITEM_BYTES[dtype]
    types = _value_types(model)  # drops the large weights from the model
    dequantized = {
        name
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    layers: dict[str, Counter[str]] = {"convolution": Counter(), "matmul": Counter()}
    for node in model.graph.node:
        if node.op_type not in _CONVOLUTIONS | _MATRIX_PRODUCTS:
            continue
        kind = "convolution" if node.op_type in _CONVOLUTIONS else "matmul"
        name = node.input[0]
        layers[kind]["int8" if name in dequantized else types.get(name, "unknown")] += 1
    return {"measured_on": "onnx graph", **summarize_types(weights, layers)}


def check_dtype_report(dtype_report: Mapping[str, Any], precision: str, *, name: str) -> None:
    """Raise ExportError if less than 95% of the weight bytes are in the precision asked for.

    ``precision`` is "fp32", "fp16", "bf16" or "int8"; ``name`` is the file's name, for the message.
    """
    wanted = WEIGHT_TYPES[precision]
    shares: Mapping[str, float] = dtype_report["weight_share"]
    share = shares.get(wanted, 0.0) + (shares.get("uint8", 0.0) if precision == "int8" else 0.0)
    if share < SMALLEST_SHARE:
        found = ", ".join(f"{value:.1%} {dtype}" for dtype, value in shares.items()) or "none"
        raise ExportError(
            f"{name} was asked for in {precision} and holds {found} of its weight bytes; expected "
            f"at least {SMALLEST_SHARE:.0%} {wanted}"
        )


def _weight_tensors(graph: Any) -> list[Any]:
    constants = [
        attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    return [*graph.initializer, *constants]


def _value_types(model: Any) -> dict[str, str]:
    """Return the type of every tensor, by ONNX's own inference. Changes ``model``."""
    graph = model.graph
    types = {tensor.name: _dtype_name(tensor.data_type) for tensor in graph.initializer}
    # The type and shape of large weights are enough: keep the name and drop the numbers.
    large = [t for t in graph.initializer if math.prod(t.dims) * 2 > _LARGE_BYTES]
    small = [t for t in graph.initializer if math.prod(t.dims) * 2 <= _LARGE_BYTES]
    make = onnx.helper.make_tensor_value_info
    graph.input.extend([make(t.name, t.data_type, t.dims) for t in large])
    del graph.initializer[:]
    graph.initializer.extend(small)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = _dtype_name(value.type.tensor_type.elem_type)
    return types


def _dtype_name(data_type: int) -> str:
    name: str = onnx.TensorProto.DataType.Name(data_type).lower()
    return {"float": "float32", "double": "float64", "undefined": "unknown"}.get(name, name)
