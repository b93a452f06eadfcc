"""Precision written into the graph: FP16 or BF16, and FP32 for what needs its range.

TensorRT 11 has no precision flags, so the types in the file are the precision. Every operator
gets one type, with a Cast between two types. Softmax, the normalizations' statistics, means over
the image, the pixels' normalization and the last layer always stay in FP32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hybrid_export.onnx_graph.cleanup import axes_inputs, prune

HalfName = Literal["fp16", "bf16"]

HALF_TYPES: dict[HalfName, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_NUMPY: dict[int, Any] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
#: Ends of the names of values that were converted.
_SUFFIXES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}

_BF16_OPSET, _BF16_IR = 22, 10
_AXES_INPUT_OPSET = 18  # reductions take their axes as an input from here on

#: Sums over many values, exponentials and quotients: what FP16's range and BF16's 8 bits break.
SENSITIVE_OPERATORS = frozenset(
    {
        "BatchNormalization",
        "GlobalAveragePool",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "Softmax",
    }
)

#: These move values and take whatever type arrives.
_MOVES = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


def to_half(model: Any, precision: HalfName, keep: Collection[str] = ()) -> Any:
    """Return a copy of the fp32 model in that precision; nodes named in ``keep`` stay in FP32.

    Input and outputs keep their types. The nodes and values keep their names.
    """
    half = HALF_TYPES[precision]
    kept = set(keep) | always_fp32(model)
    typing = _Typing(model, half)
    for node in model.graph.node:
        typing.add(node, fp32=node.op_type in SENSITIVE_OPERATORS or node.name in kept)
    typing.finish()
    typed = onnx.ModelProto(
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        opset_import=model.opset_import,
        metadata_props=model.metadata_props,
        graph=helper.make_graph(
            typing.nodes,
            model.graph.name,
            list(model.graph.input),
            list(model.graph.output),
            list(typing.initializers.values()),
        ),
    )
    prune(typed.graph)
    if precision == "bf16":  # ONNX allows convolutions in BF16 from opset 22, IR 10
        if typed.opset_import[0].version < _AXES_INPUT_OPSET:
            axes_inputs(typed.graph)
        typed.opset_import[0].version = max(_BF16_OPSET, typed.opset_import[0].version)
        typed.ir_version = max(_BF16_IR, typed.ir_version)
    return typed


def always_fp32(model: Any) -> set[str]:
    """Return the names of nodes that always stay in FP32.

    They are before the first weights (the pixels), after the last (the outputs), or the heatmaps'
    arithmetic; only the large matrix products of the heatmaps are in half precision.
    """
    return (
        _before_weights(model.graph) | _last_layer(model.graph) | _gradient_arithmetic(model.graph)
    )


def residual_additions(model: Any) -> set[str]:
    """Return the names of the additions of two computed values: the residual streams.

    They add up the outputs of all layers, so their rounding errors add up too.
    """
    weights = {t.name for t in model.graph.initializer}
    return {
        node.name
        for node in model.graph.node
        if node.op_type == "Add" and not weights.intersection(node.input)
    }


def scope(node: Any) -> str:
    """Return the module that a node belongs to, such as "vit.blocks.3.norm1"; "" at the top."""
    names = node.name.split("/")
    return names[1] if len(names) > 2 else ""


def in_module(node: Any, module: str) -> bool:
    """Return whether the node belongs to the module or one inside it."""
    name = scope(node)
    return name == module or name.startswith(module + ".")


class _Typing:
    """Nodes being typed one after the other, in graph order."""

    def __init__(self, model: Any, half: int) -> None:
        self.half = half
        self.graph = model.graph
        self.weights = {t.name: t for t in model.graph.initializer}
        self.outputs = {output.name for output in model.graph.output}
        #: The floating-point type of each computed value; integers are not in it.
        self.types: dict[str, int] = {}
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self._made: set[str] = set()

    def add(self, node: Any, *, fp32: bool) -> None:
        """Append a copy of the node with its inputs in its type."""
        clone = onnx.NodeProto()
        clone.CopyFrom(node)
        if node.op_type == "Cast":
            self._set_types(clone, next(a.i for a in node.attribute if a.name == "to"))
            self.nodes.append(clone)
            return
        kind = TensorProto.FLOAT if fp32 else self.half
        if node.op_type in _MOVES and not fp32:
            arriving = {self.types[name] for name in node.input if name in self.types}
            if arriving:
                kind = TensorProto.FLOAT if TensorProto.FLOAT in arriving else self.half
        is_float = False
        for i, name in enumerate(node.input):
            if self._is_float(name):
                is_float = True
                clone.input[i] = self._in_type(name, kind)
            elif name in self.weights:
                self.initializers[name] = self.weights[name]
        if is_float:
            self._set_types(clone, kind)
        self.nodes.append(clone)

    def finish(self) -> None:
        """Add a Cast to their own type to outputs that were computed in half precision."""
        for name in self.outputs:
            if self.types.get(name) != self.half:
                continue
            inner = f"{name}_half"
            for node in self.nodes:
                node.input[:] = [inner if n == name else n for n in node.input]
                node.output[:] = [inner if n == name else n for n in node.output]
            self.nodes.append(_cast(inner, name, TensorProto.FLOAT))

    def _is_float(self, name: str) -> bool:
        if name in self.weights:
            return bool(self.weights[name].data_type == TensorProto.FLOAT)
        return name in self.types

    def _set_types(self, node: Any, kind: int) -> None:
        if kind in _NUMPY and node.op_type not in ("Shape", "ArgMax", "Equal", "Greater", "Less"):
            self.types.update(dict.fromkeys(node.output, kind))

    def _in_type(self, name: str, kind: int) -> str:
        """Return the name of that value in that type; make the weight or the Cast once."""
        if name in self.weights:
            typed = name if kind == TensorProto.FLOAT else f"{name}.{_SUFFIXES[kind]}"
            if typed not in self.initializers:
                self.initializers[typed] = convert(self.weights[name], kind, typed)
            return typed
        if self.types[name] == kind:
            return name
        typed = f"{name}.{_SUFFIXES[kind]}"
        if typed not in self._made:
            self._made.add(typed)
            self.nodes.append(_cast(name, typed, kind))
        return typed


def convert(tensor: Any, kind: int, name: str) -> Any:
    """Return an fp32 initializer in another type; what FP16 cannot hold becomes infinite."""
    if kind == tensor.data_type and name == tensor.name:
        return tensor
    with np.errstate(over="ignore"):
        array = numpy_helper.to_array(tensor).astype(_NUMPY[kind])
    return numpy_helper.from_array(array, name)


def _cast(source: str, target: str, kind: int) -> Any:
    return helper.make_node("Cast", [source], [target], name=f"/cast/{target}", to=kind)


def _before_weights(graph: Any) -> set[str]:
    """Return nodes that depend on no convolution or matrix product: they prepare the pixels."""
    downstream: set[str] = set()
    names = set()
    for node in graph.node:
        starts = node.op_type in ("Conv", "MatMul", "Gemm")
        if starts or downstream.intersection(node.input):
            downstream.update(node.output)
        else:
            names.add(node.name)
    return names


def _last_layer(graph: Any) -> set[str]:
    """Return the matrix product that makes the logits, and what makes probabilities of them."""
    producers = {name: node for node in graph.node for name in node.output}
    names = set()
    weights = {t.name for t in graph.initializer}
    waiting = ["probabilities"]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in names:
            continue
        names.add(node.name)
        if node.op_type not in ("Gemm", "MatMul") or not weights.intersection(node.input):
            waiting += node.input
    return names


def _gradient_arithmetic(graph: Any) -> set[str]:
    """Return the nodes of the heatmaps but for large products with weights.

    The head's gradient has a term for every unit above 0. Rounding moves some across, and in a
    layer of 64 units one is 18% of the gradient; so the head after its first layer is in FP32 too.
    """
    weights = {t.name for t in graph.initializer}
    if not any(scope(node).startswith("explain_") for node in graph.node):
        return set()
    large = ("head.layers.0", "head.gradients.0")
    return {
        node.name
        for node in graph.node
        if scope(node).split(".")[0] in ("head", "explain_vit", "explain_cnn")
        and not (
            node.op_type in ("Gemm", "MatMul")
            and weights.intersection(node.input)
            and (scope(node) in large or scope(node).startswith("explain_"))
        )
    }
