"""A small network of this project's kind as ONNX bytes: one ViT-B block and two bottlenecks.

The probe runs it in FP32 and in INT8 (QuantizeLinear and DequantizeLinear at the same places as in
hybrid-export). The shares of linear layers, attention and convolutions are about those of
ViT-B/16 + ResNet50 at 224 px, so that its speeds rank those of the real model. The runtime has no
``onnx`` package, and weights of this size do not belong in a wheel. So the few protobuf messages
that are needed (onnx/onnx.proto) are written here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_TOKENS, _WIDTH, _HEADS, _HIDDEN = 197, 768, 12, 3072  # ViT-B/16 at 224 px
_STAGES = ((512, 128, 28), (1024, 256, 14))  # bottlenecks of ResNet50: channels, inner, pixels
_LARGEST = 4.0  # magnitude that the INT8 scales of activations reach

#: Data types of TensorProto.
_TYPES = {np.dtype(np.float32): 1, np.dtype(np.int8): 3, np.dtype(np.int64): 7}


def probe_inputs() -> dict[str, NDArray[np.float32]]:
    """Return the graph's inputs by name: tokens ``[1, 197, 768]`` and two maps ``[1, C, H, W]``."""
    random = np.random.default_rng(0)
    inputs = {"tokens": random.uniform(-2, 2, (1, _TOKENS, _WIDTH))}
    for i, (channels, _, size) in enumerate(_STAGES):
        inputs[f"map{i}"] = random.uniform(0, 2, (1, channels, size, size))
    return {name: values.astype(np.float32) for name, values in inputs.items()}


def probe_graph(*, int8: bool) -> tuple[bytes, NDArray[np.float32]]:
    """Return the serialized ONNX model, and the expected output ``product``, by NumPy.

    The other outputs are ``block`` ``[1, 197, 768]`` and ``stage0``, ``stage1`` ``[1, C, H, W]``.
    """
    graph = _Graph(int8)
    graph.block("tokens")
    for i, (channels, inner, _) in enumerate(_STAGES):
        graph.bottleneck(f"map{i}", f"stage{i}", channels, inner)
    shapes = {name: list(values.shape) for name, values in probe_inputs().items()}
    outputs = {"product": shapes["tokens"], "block": shapes["tokens"]}
    outputs |= {f"stage{i}": shapes[f"map{i}"] for i in range(len(_STAGES))}
    expected = probe_inputs()["tokens"] @ graph.first_weight
    return graph.serialize(shapes, outputs), expected


class _Graph:
    """Nodes and initializers, each serialized when it is added."""

    def __init__(self, int8: bool) -> None:
        self._int8 = int8
        self._random = np.random.default_rng(1)
        self._nodes: list[bytes] = []
        self._initializers: list[bytes] = []
        self._count = 0
        self.first_weight: NDArray[np.float32] = np.empty(0, np.float32)

    def block(self, x: str) -> None:
        """A pre-norm transformer block whose query projection is the output ``product``."""
        query = self._linear(x, _WIDTH, _WIDTH, "product")
        normed = self._norm(x)
        key, value = (self._linear(normed, _WIDTH, _WIDTH) for _ in range(2))
        shape = self._constant(np.array([1, _TOKENS, _HEADS, _WIDTH // _HEADS]))
        query, key, value = (self._node("Reshape", [v, shape]) for v in (query, key, value))
        query, value = (self._node("Transpose", [v], perm=[0, 2, 1, 3]) for v in (query, value))
        key = self._node("Transpose", [key], perm=[0, 2, 3, 1])
        scale = self._constant(np.float32((_WIDTH // _HEADS) ** -0.5))
        scores = self._node("Mul", [self._node("MatMul", [query, key]), scale])
        mixed = self._node("MatMul", [self._node("Softmax", [scores], axis=-1), value])
        mixed = self._node("Transpose", [mixed], perm=[0, 2, 1, 3])
        mixed = self._node("Reshape", [mixed, self._constant(np.array([1, _TOKENS, _WIDTH]))])
        x = self._node("Add", [x, self._linear(mixed, _WIDTH, _WIDTH)])
        hidden = self._gelu(self._linear(self._norm(x), _WIDTH, _HIDDEN))
        self._node("Add", [x, self._linear(hidden, _HIDDEN, _WIDTH)], "block")

    def bottleneck(self, x: str, output: str, channels: int, inner: int) -> None:
        """Three convolutions and a residual addition, which reads the same INT8 values."""
        x = self._quantized(x)
        y = self._node("Relu", [self._conv(x, channels, inner, 1)])
        y = self._node("Relu", [self._conv(self._quantized(y), inner, inner, 3)])
        y = self._conv(self._quantized(y), inner, channels, 1)
        self._node("Relu", [self._node("Add", [x, y])], output)

    def serialize(self, inputs: dict[str, list[int]], outputs: dict[str, list[int]]) -> bytes:
        """ModelProto: ir_version 1, graph 7, opset_import 8."""
        graph = b"".join(
            [
                *(_bytes(1, node) for node in self._nodes),
                _bytes(2, b"cpu_probe"),
                *(_bytes(5, tensor) for tensor in self._initializers),
                *(_bytes(11, _value_info(name, shape)) for name, shape in inputs.items()),
                *(_bytes(12, _value_info(name, shape)) for name, shape in outputs.items()),
            ]
        )
        return _varint_field(1, 8) + _bytes(7, graph) + _bytes(8, _varint_field(2, 17))

    def _linear(self, x: str, width: int, out: int, name: str | None = None) -> str:
        weight = self._weight((width, out), 1, fan_in=width)
        return self._node("MatMul", [self._quantized(x), weight], name)

    def _conv(self, x: str, channels: int, out: int, size: int) -> str:
        weight = self._weight((out, channels, size, size), 0, fan_in=channels * size * size)
        return self._node("Conv", [x, weight], pads=[size // 2] * 4)

    def _norm(self, x: str) -> str:
        ones = self._constant(np.ones(_WIDTH, np.float32))
        zeros = self._constant(np.zeros(_WIDTH, np.float32))
        return self._node("LayerNormalization", [x, ones, zeros], axis=-1)

    def _gelu(self, x: str) -> str:
        half, one, root = (self._constant(np.float32(v)) for v in (0.5, 1.0, 0.5**0.5))
        inner = self._node("Add", [self._node("Erf", [self._node("Mul", [x, root])]), one])
        return self._node("Mul", [self._node("Mul", [x, inner]), half])

    def _quantized(self, x: str) -> str:
        if not self._int8:
            return x
        scale = self._constant(np.float32(_LARGEST / 127))
        zero = self._constant(np.int8(0))
        inner = self._node("QuantizeLinear", [x, scale, zero])
        return self._node("DequantizeLinear", [inner, scale, zero])

    def _weight(self, shape: tuple[int, ...], axis: int, fan_in: int) -> str:
        values = self._random.integers(-127, 128, shape, dtype=np.int8)
        scale = np.float32(1.5 / 127 * fan_in**-0.5)
        if not self.first_weight.size:
            self.first_weight = values * scale
        if not self._int8:
            return self._constant(values * scale)
        scales = self._constant(np.full(shape[axis], scale))
        zeros = self._constant(np.zeros(shape[axis], np.int8))
        return self._node("DequantizeLinear", [self._constant(values), scales, zeros], axis=axis)

    def _constant(self, values: NDArray[np.generic] | np.generic) -> str:
        """TensorProto: dims 1, data_type 2, name 8, raw_data 9."""
        values = np.asarray(values)
        name = self._new_name()
        self._initializers.append(
            b"".join(_varint_field(1, size) for size in values.shape)
            + _varint_field(2, _TYPES[values.dtype])
            + _bytes(8, name.encode())
            + _bytes(9, values.tobytes())
        )
        return name

    def _node(
        self, operator: str, inputs: Sequence[str], name: str | None = None, **attributes: object
    ) -> str:
        """NodeProto: input 1, output 2, name 3, op_type 4, attribute 5."""
        output = name or self._new_name()
        self._nodes.append(
            b"".join(_bytes(1, value.encode()) for value in inputs)
            + _bytes(2, output.encode())
            + _bytes(3, f"/{output}".encode())
            + _bytes(4, operator.encode())
            + b"".join(_bytes(5, _attribute(key, value)) for key, value in attributes.items())
        )
        return output

    def _new_name(self) -> str:
        self._count += 1
        return f"v{self._count}"


def _attribute(name: str, value: object) -> bytes:
    """AttributeProto: name 1, i 3, ints 8, type 20 (INT is 2, INTS is 7)."""
    if isinstance(value, int):
        return _bytes(1, name.encode()) + _varint_field(3, value) + _varint_field(20, 2)
    assert isinstance(value, list)
    ints = b"".join(_varint_field(8, item) for item in value)
    return _bytes(1, name.encode()) + ints + _varint_field(20, 7)


def _value_info(name: str, shape: Sequence[int]) -> bytes:
    """ValueInfoProto of a float32 tensor: name 1, type 2 (tensor_type 1: elem_type 1, shape 2)."""
    dims = b"".join(_bytes(1, _varint_field(1, size)) for size in shape)
    tensor = _varint_field(1, 1) + _bytes(2, dims)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint_field(field: int, value: int) -> bytes:
    (unsigned,) = struct.unpack("<Q", struct.pack("<q", value))
    return _varint(field << 3) + _varint(unsigned)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
