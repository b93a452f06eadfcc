"""Remove from a traced graph what depends on the exporter: names, shape arithmetic, metadata."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from hybrid_export.onnx_graph.io import set_metadata
from hybrid_rt.spec import METADATA_KEY, ModelSpec

TRACED_OPSET = 18  # the lowest that torch's exporter writes


_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def tidy(model: Any, spec: ModelSpec, opset: int) -> Any:
    """Return the exporter's model with scoped names, plain operators and the spec."""
    _scope_names(model.graph)
    _global_pools(model.graph)
    if opset < TRACED_OPSET:
        _axes_attributes(model.graph)
    prune(model.graph)
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    _set_batch_dimension(model.graph, spec)
    version = opset if opset < TRACED_OPSET else model.opset_import[0].version
    tidied = helper.make_model(
        model.graph,
        opset_imports=[helper.make_opsetid("", version)],
        producer_name="hybrid-export",
        ir_version=_ir_version(version),
    )
    set_metadata(tidied, {METADATA_KEY: spec.to_json()})
    return tidied


def prune(graph: Any) -> None:
    """Drop nodes and initializers that no output needs."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    nodes = list(reversed(kept))
    initializers = [t for t in graph.initializer if t.name in needed]
    if len(nodes) != len(graph.node):
        _replace(graph.node, nodes)
    if len(initializers) != len(graph.initializer):
        _replace(graph.initializer, initializers)


def _replace(field: Any, items: Sequence[Any]) -> None:
    copies = [type(item)() for item in items]
    for new, item in zip(copies, items, strict=True):
        new.CopyFrom(item)
    del field[:]
    field.extend(copies)


def _scope_names(graph: Any) -> None:
    """Name nodes by their place in the network, such as /vit/blocks.3/norm1/LayerNorm…"""
    taken: dict[str, int] = {}
    for node in graph.node:
        scopes: list[str] = []
        for prop in node.metadata_props:
            if prop.key == _SCOPES_KEY:
                with contextlib.suppress(ValueError):
                    scopes = json.loads(prop.value.replace("'", '"'))
        module = scopes[-2] if len(scopes) > 1 else ""
        name = "/".join(("", *filter(None, [module]), node.op_type))
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
        del node.metadata_props[:]
        node.doc_string = ""


def _global_pools(graph: Any) -> None:
    """Write means over both image axes as GlobalAveragePool, the same in every opset."""
    constants = {t.name: t for t in graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in graph.value_info}
    nodes = []
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            nodes.append(node)
            continue
        axes = set(numpy_helper.to_array(constants[node.input[1]]).ravel().tolist())
        if ranks.get(node.input[0]) != 4 or axes not in ({-1, -2}, {2, 3}):
            nodes.append(node)
            continue
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        pooled = node.output[0] if keep else f"{node.output[0]}_pooled"
        name = node.name.replace("ReduceMean", "GlobalAveragePool")
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=name))
        if not keep:
            flat = helper.make_node(
                "Flatten", [pooled], [node.output[0]], name=f"{name}/Flatten", axis=1
            )
            nodes.append(flat)
    _replace(graph.node, nodes)


def _axes_attributes(graph: Any) -> None:
    """Write the axes of reductions but sums as attributes, as opset 17 has them."""
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if not node.op_type.startswith("Reduce") or node.op_type == "ReduceSum":
            continue
        if len(node.input) == 2 and node.input[1] in constants:
            axes = numpy_helper.to_array(constants[node.input[1]]).ravel().tolist()
            kept = [a for a in node.attribute if a.name == "keepdims"]
            _replace(node.attribute, [*kept, helper.make_attribute("axes", axes)])
            del node.input[1]


def axes_inputs(graph: Any) -> None:
    """Write the axes of reductions as inputs, as opset 18 and later have them."""
    for node in graph.node:
        found = [a for a in node.attribute if a.name == "axes"]
        if not node.op_type.startswith("Reduce") or not found:
            continue
        name = f"{node.name}/axes"
        graph.initializer.append(numpy_helper.from_array(np.array(found[0].ints, np.int64), name))
        node.input.append(name)
        node.attribute.remove(found[0])


def _set_batch_dimension(graph: Any, spec: ModelSpec) -> None:
    """Set the shapes of input and outputs to the spec's, the first dimension dynamic."""
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for value, output in zip(graph.output, spec.outputs, strict=True):
        shape = helper.make_tensor_value_info(
            value.name, value.type.tensor_type.elem_type, list(output.shape)
        )
        value.CopyFrom(shape)


def _ir_version(opset: int) -> int:
    """Return the lowest file version that may hold this opset, for older readers."""
    version: int = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    return max(version, 8)
