"""ONNX operators on torch tensors, those that vision networks are made of.

Each takes the inputs (floating-point ones in fp32; None for an optional one that is left out) and
the attributes, and returns the outputs: https://onnx.ai/onnx/operators. Other operators run by
onnx's reference implementation, which is in NumPy and too slow for a network's convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def operator(x: Inputs, a: Attributes) -> Tensor:
        axes = _numbers(x[1]) if len(x) > 1 and x[1] is not None else a.get("axes")
        keep = bool(a.get("keepdims", 1))
        return function(x[0], axes or list(range(x[0].ndim)), keep)

    return operator


def _reshape(x: Inputs, a: Attributes) -> Tensor:
    shape = _numbers(x[1])
    if not a.get("allowzero", 0):
        shape = [x[0].shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return x[0].reshape(shape)


def _slice(x: Inputs, a: Attributes) -> Tensor:
    starts, ends = _numbers(x[1]), _numbers(x[2])
    axes = _numbers(x[3]) if len(x) > 3 and x[3] is not None else list(range(len(starts)))
    steps = _numbers(x[4]) if len(x) > 4 and x[4] is not None else [1] * len(starts)
    out = x[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            index = [slice(None)] * out.ndim
            index[axis] = slice(start, end, step)
            out = out[tuple(index)]
        else:
            rows = range(out.shape[axis])[
                slice(start, end if end >= -out.shape[axis] else None, step)
            ]
            out = out.index_select(axis, torch.tensor(list(rows), dtype=torch.int64))
    return out


def _split(x: Inputs, a: Attributes) -> list[Tensor]:
    axis = a.get("axis", 0)
    if len(x) > 1 and x[1] is not None:
        return list(x[0].split(_numbers(x[1]), axis))
    return list(x[0].chunk(a["num_outputs"], axis))


def _pad(x: Inputs, a: Attributes) -> Tensor:
    pads = _numbers(x[1])
    value = float(x[2]) if len(x) > 2 and x[2] is not None else 0.0
    axes = _numbers(x[3]) if len(x) > 3 and x[3] is not None else list(range(x[0].ndim))
    both = {axis % x[0].ndim: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    flat = [n for axis in reversed(range(x[0].ndim)) for n in both.get(axis, (0, 0))]
    mode = a.get("mode", b"constant").decode()
    if mode == "constant":
        return F.pad(x[0], flat, value=value)
    return F.pad(x[0], flat[:4], mode={"edge": "replicate", "reflect": "reflect"}[mode])


def _squeeze(x: Inputs, a: Attributes) -> Tensor:
    return x[0].squeeze(tuple(_numbers(x[1]))) if len(x) > 1 else x[0].squeeze()


def _unsqueeze(x: Inputs, a: Attributes) -> Tensor:
    out = x[0]
    rank = out.ndim + x[1].numel()
    for axis in sorted(axis % rank for axis in _numbers(x[1])):
        out = out.unsqueeze(axis)
    return out


def _gather(x: Inputs, a: Attributes) -> Tensor:
    axis, index = a.get("axis", 0) % x[0].ndim, x[1].long()
    index = torch.where(index < 0, index + x[0].shape[axis], index)
    shape = (*x[0].shape[:axis], *index.shape, *x[0].shape[axis + 1 :])
    return x[0].index_select(axis, index.reshape(-1)).reshape(shape)


def _shape(x: Inputs, a: Attributes) -> Tensor:
    return torch.tensor(x[0].shape[a.get("start", 0) : a.get("end")], dtype=torch.int64)


def _expand(x: Inputs, a: Attributes) -> Tensor:
    return x[0].expand(torch.broadcast_shapes(x[0].shape, tuple(_numbers(x[1])))).contiguous()


def _clip(x: Inputs, a: Attributes) -> Tensor:
    low, high = (x[i] if len(x) > i else None for i in (1, 2))
    return x[0].clamp(low, high)


def _gelu(x: Inputs, a: Attributes) -> Tensor:
    return F.gelu(x[0], approximate=a.get("approximate", b"none").decode())


def _arg_max(x: Inputs, a: Attributes) -> Tensor:
    return x[0].argmax(a.get("axis", 0), keepdim=bool(a.get("keepdims", 1)))


OPERATORS: dict[str, Operator] = {
    "Abs": lambda x, a: x[0].abs(),
    "Add": lambda x, a: x[0] + x[1],
    "ArgMax": _arg_max,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda x, a: torch.cat(list(x), a["axis"]),
    "Conv": _conv,
    "Div": lambda x, a: x[0] / x[1],
    "Equal": lambda x, a: x[0] == x[1],
    "Erf": lambda x, a: x[0].erf(),
    "Exp": lambda x, a: x[0].exp(),
    "Expand": _expand,
    "Flatten": lambda x, a: x[0].flatten(a.get("axis", 1)),
    "Gather": _gather,
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
    "Pad": _pad,
    "Pow": lambda x, a: x[0].pow(x[1]),
    "Reciprocal": lambda x, a: x[0].reciprocal(),
    "ReduceMax": _reduce(lambda t, axes, keep: t.amax(axes, keep)),
    "ReduceMean": _reduce(lambda t, axes, keep: t.mean(axes, keep)),
    "ReduceSum": _reduce(lambda t, axes, keep: t.sum(axes, keep)),
    "Relu": lambda x, a: x[0].relu(),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda x, a: x[0].sigmoid(),
    "Slice": _slice,
    "Softmax": lambda x, a: x[0].softmax(a.get("axis", -1)),
    "Softplus": lambda x, a: F.softplus(x[0]),
    "Split": _split,
    "Sqrt": lambda x, a: x[0].sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda x, a: x[0] - x[1],
    "Tanh": lambda x, a: x[0].tanh(),
    "Transpose": lambda x, a: x[0].permute(a.get("perm", list(reversed(range(x[0].ndim))))),
    "Unsqueeze": _unsqueeze,
    "Where": lambda x, a: torch.where(x[0], x[1], x[2]),
}
