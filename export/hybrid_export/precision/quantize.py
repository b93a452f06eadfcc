"""INT8 written in the graph: QuantizeLinear and DequantizeLinear around what is quantized.

Weights are int8, symmetric, one scale an output channel; activations int8, symmetric, one scale a
value, zero point 0, which is the form that TensorRT, ONNX Runtime and OpenVINO all take.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hybrid_export.onnx_graph.cleanup import prune
from hybrid_export.precision.activation_ranges import Ranges

_ZERO = "int8_zero"


@dataclass(frozen=True)
class Layer:
    """A node with a constant weight that can be quantized."""

    node: Any
    activation: str
    weight: str
    #: Axis of the weight that counts output channels.
    channel_axis: int


def layers(model: Any) -> Iterator[Layer]:
    """Yield convolutions and matrix products with weights, in graph order."""
    weights = {t.name for t in model.graph.initializer if t.data_type == t.FLOAT}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[1] not in weights:
            continue
        axis = 0
        if node.op_type == "MatMul":
            axis = 1
        elif node.op_type == "Gemm":
            axis = 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
        yield Layer(node, node.input[0], node.input[1], axis)


def quantize(model: Any, ranges: Ranges, chosen: Collection[str]) -> Any:
    """Return a copy of the fp32 model with the nodes named in ``chosen`` in int8."""
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    writer = _Writer(graph, ranges)
    nodes = {node.name: node for node in graph.node}
    activations = set()
    for layer in layers(model):
        if layer.node.name in chosen:
            activations.add(layer.activation)
            nodes[layer.node.name].input[1] = writer.weight(layer)
    consumers = _consumers(graph)
    for name in sorted(activations):
        pair = writer.pair(name, ranges.scale(name))
        for node in consumers[name]:
            # A residual addition reads the same int8 values: half the traffic, and TensorRT and
            # OpenVINO fuse it into the convolution that makes its other input.
            if node.name in chosen or node.op_type == "Add":
                node.input[:] = [pair if n == name else n for n in node.input]
    known = {t.name for t in (*graph.initializer, *writer.initializers, *graph.input)}
    ordered = _sorted(list(graph.node), writer.nodes, known)
    del graph.node[:]
    graph.node.extend(ordered)
    graph.initializer.extend(writer.initializers)
    prune(graph)
    return quantized


class _Writer:
    """The Q/DQ nodes and int8 weights of one graph, each made once."""

    def __init__(self, graph: Any, ranges: Ranges) -> None:
        self.weights = {t.name: t for t in graph.initializer}
        self.nodes: list[Any] = []
        self.initializers = [numpy_helper.from_array(np.array(0, np.int8), _ZERO)]
        self._made: dict[str, str] = {}

    def pair(self, name: str, scale: float) -> str:
        """Quantize and dequantize a value; return the result's name."""
        if name not in self._made:
            step = f"{name}.scale"
            self.initializers.append(numpy_helper.from_array(np.array(scale, np.float32), step))
            inner, outer = f"{name}.int8", f"{name}.dequantized"
            self.nodes += [
                helper.make_node("QuantizeLinear", [name, step, _ZERO], [inner], name=f"/q/{name}"),
                helper.make_node(
                    "DequantizeLinear", [inner, step, _ZERO], [outer], name=f"/dq/{name}"
                ),
            ]
            self._made[name] = outer
        return self._made[name]

    def weight(self, layer: Layer) -> str:
        """Put the layer's weight in int8 behind a DequantizeLinear; return the result's name."""
        key = f"{layer.weight}.{layer.channel_axis}"
        if key not in self._made:
            values, scales = quantize_weight(
                numpy_helper.to_array(self.weights[layer.weight]), layer.channel_axis
            )
            arrays: dict[str, NDArray[Any]] = {
                f"{key}.int8": values,
                f"{key}.scale": scales,
                f"{key}.zero": np.zeros(len(scales), np.int8),
            }
            self.initializers += [numpy_helper.from_array(a, name) for name, a in arrays.items()]
            outer = f"{key}.dequantized"
            self.nodes.append(
                helper.make_node(
                    "DequantizeLinear",
                    list(arrays),
                    [outer],
                    name=f"/dq/{key}",
                    axis=layer.channel_axis,
                )
            )
            self._made[key] = outer
        return self._made[key]


def quantize_weight(
    weight: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values and the scale of each output channel."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    values = np.clip(np.round(weight / scales.reshape(shape)), -127, 127).astype(np.int8)
    return values, scales


def _consumers(graph: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def _sorted(nodes: list[Any], extra: list[Any], known: set[str]) -> list[Any]:
    """Return the nodes, each extra one as soon as its inputs are there."""
    waiting, ordered = list(extra), []
    ready = set(known)

    def release() -> None:
        for node in list(waiting):
            if ready.issuperset(filter(None, node.input)):
                waiting.remove(node)
                ordered.append(node)
                ready.update(node.output)
                release()
                return

    release()
    for node in nodes:
        ordered.append(node)
        ready.update(node.output)
        release()
    return ordered
