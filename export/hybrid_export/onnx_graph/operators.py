"""ONNX operators on torch tensors: those that do the work of a vision network.

Each takes the inputs (floating-point ones in fp32; None for an optional one that is left out) and
the attributes, and returns the output: https://onnx.ai/onnx/operators. Operators that are not
listed run by onnx's own reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from hybrid_rt.errors import ExportError

Inputs = Sequence[Tensor]
Attributes = dict[str, Any]
Operator = Callable[[Inputs, Attributes], Any]


def _numbers(tensor: Tensor) -> list[int]:
    return [int(n) for n in tensor.reshape(-1).tolist()]


def _conv(x: Inputs, a: Attributes) -> Tensor:
    image, weight = x[0], x[1]
    bias = x[2] if len(x) > 2 else None
    spatial = weight.ndim - 2
    image, padding = _padded(image, a, weight.shape[2:], 0.0)
    return F.conv2d(
        image,
        weight,
        bias,
        stride=a.get("strides", [1] * spatial),
        padding=padding,
        dilation=a.get("dilations", [1] * spatial),
        groups=a.get("group", 1),
    )


def _padded(
    image: Tensor, a: Attributes, kernel: Sequence[int], value: float
) -> tuple[Tensor, list[int]]:
    """Return the image, padded if ONNX's padding is uneven, and what is left for torch to pad."""
    assert a.get("auto_pad", b"NOTSET") == b"NOTSET", "torch's exporter writes pads"
    pads = a.get("pads", [0] * (2 * len(kernel)))
    half = len(pads) // 2
    begin, end = list(pads[:half]), list(pads[half:])
    if begin == end:
        return image, begin
    flat = [n for pair in reversed(list(zip(begin, end, strict=True))) for n in pair]
    return F.pad(image, flat, value=value), [0] * half


def _max_pool(x: Inputs, a: Attributes) -> Tensor:
    kernel = a["kernel_shape"]
    image, padding = _padded(x[0], a, kernel, float("-inf"))
    return F.max_pool2d(
        image,
        kernel,
        a.get("strides", [1] * len(kernel)),
        padding,
        a.get("dilations", 1),
        bool(a.get("ceil_mode", 0)),
    )


def _average_pool(x: Inputs, a: Attributes) -> Tensor:
    kernel = a["kernel_shape"]
    count_padding = bool(a.get("count_include_pad", 0))
    strides = a.get("strides", [1] * len(kernel))
    ceil = bool(a.get("ceil_mode", 0))
    image, padding = _padded(x[0], a, kernel, 0.0)
    pooled = F.avg_pool2d(image, kernel, strides, padding, ceil, count_padding)
    if image is x[0] or count_padding:
        return pooled
    ones, _ = _padded(torch.ones_like(x[0]), a, kernel, 0.0)
    return pooled / F.avg_pool2d(ones, kernel, strides, padding, ceil, count_padding)


def _gemm(x: Inputs, a: Attributes) -> Tensor:
    left = x[0].transpose(0, 1) if a.get("transA", 0) else x[0]
    right = x[1].transpose(0, 1) if a.get("transB", 0) else x[1]
    product: Tensor = (left @ right) * a.get("alpha", 1.0)
    return product + x[2] * a.get("beta", 1.0) if len(x) > 2 and x[2] is not None else product


def _layer_norm(x: Inputs, a: Attributes) -> Tensor:
    axis = a.get("axis", -1)
    shape = x[0].shape[axis:]
    bias = x[2] if len(x) > 2 else None
    return F.layer_norm(x[0], shape, x[1].reshape(shape), bias, a.get("epsilon", 1e-5))


def _batch_norm(x: Inputs, a: Attributes) -> Tensor:
    return F.batch_norm(x[0], x[3], x[4], x[1], x[2], eps=a.get("epsilon", 1e-5))


def _reshape(x: Inputs, a: Attributes) -> Tensor:
    shape = _numbers(x[1])
    if not a.get("allowzero", 0):
        shape = [x[0].shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return x[0].reshape(shape)


def _gelu(x: Inputs, a: Attributes) -> Tensor:
    return F.gelu(x[0], approximate=a.get("approximate", b"none").decode())


OPERATORS: dict[str, Operator] = {
    "Abs": lambda x, a: x[0].abs(),
    "Add": lambda x, a: x[0] + x[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Concat": lambda x, a: torch.cat(list(x), a["axis"]),
    "Conv": _conv,
    "Div": lambda x, a: x[0] / x[1],
    "Equal": lambda x, a: x[0] == x[1],
    "Erf": lambda x, a: x[0].erf(),
    "Exp": lambda x, a: x[0].exp(),
    "Flatten": lambda x, a: x[0].flatten(a.get("axis", 1)),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x, a: x[0].mean((2, 3), keepdim=True),
    "Greater": lambda x, a: x[0] > x[1],
    "HardSigmoid": lambda x, a: (x[0] * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda x, a: F.hardswish(x[0]),
    "Identity": lambda x, a: x[0],
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, a: F.leaky_relu(x[0], a.get("alpha", 0.01)),
    "Less": lambda x, a: x[0] < x[1],
    "MatMul": lambda x, a: x[0] @ x[1],
    "Max": lambda x, a: torch.maximum(x[0], x[1]),
    "MaxPool": _max_pool,
    "Min": lambda x, a: torch.minimum(x[0], x[1]),
    "Mul": lambda x, a: x[0] * x[1],
    "Neg": lambda x, a: -x[0],
    "Pow": lambda x, a: x[0].pow(x[1]),
    "Reciprocal": lambda x, a: x[0].reciprocal(),
    "Relu": lambda x, a: x[0].relu(),
    "Reshape": _reshape,
    "Sigmoid": lambda x, a: x[0].sigmoid(),
    "Softmax": lambda x, a: x[0].softmax(a.get("axis", -1)),
    "Softplus": lambda x, a: F.softplus(x[0]),
    "Sqrt": lambda x, a: x[0].sqrt(),
    "Sub": lambda x, a: x[0] - x[1],
    "Tanh": lambda x, a: x[0].tanh(),
    "Transpose": lambda x, a: x[0].permute(a.get("perm", list(reversed(range(x[0].ndim))))),
    "Where": lambda x, a: torch.where(x[0], x[1], x[2]),
}


def reference_operator(node: Any, opset: int) -> Operator:
    """Return an operator that runs the node by onnx's reference implementation."""
    clone = onnx.NodeProto()
    clone.CopyFrom(node)
    names = [f"i{i}" if name else "" for i, name in enumerate(node.input)]
    del clone.input[:]
    clone.input.extend(names)

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)  # it reads no types

    graph = helper.make_graph(
        [clone], node.op_type, [value(n) for n in names if n], [value(n) for n in node.output if n]
    )
    try:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        evaluator = ReferenceEvaluator(model)
    except Exception as err:
        raise _not_validated(node, err) from err

    def operator(x: Inputs, _: Attributes) -> list[Tensor]:
        feeds = {n: t.numpy() for n, t in zip(names, x, strict=True) if n}
        try:
            results = evaluator.run(None, feeds)
        except Exception as err:  # the reference raises many kinds of its own
            raise _not_validated(node, err) from err
        return [torch.from_numpy(np.array(result)) for result in results]

    return operator


def _not_validated(node: Any, err: Exception) -> ExportError:
    name = node.name or node.op_type
    return ExportError(f"{name} cannot be validated here ({err}); try other backbones")
