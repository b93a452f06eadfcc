"""The deployment graph as an ONNX file that every backend reads the same way.

Traced with a batch of two, since a sample batch of one freezes the batch; tidied so that nothing
depends on the exporter: scoped node names, no shape arithmetic, no exporter metadata, the spec in
``metadata_props``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from hybrid_export.network.deployment import INPUT_NAME, DeploymentGraph
from hybrid_rt.errors import ExportError, UsageError
from hybrid_rt.files import atomic_path
from hybrid_rt.spec import METADATA_KEY, ModelSpec

#: LayerNormalization is one operator from opset 17, which every TensorRT from 8.6 on reads; 8.6
#: reads none above.
MIN_OPSET, MAX_OPSET, DEFAULT_OPSET = 17, 23, 17

_TRACED_OPSET = 18  # the lowest that torch's exporter writes
_TRACE_BATCH = 2
#: A protobuf message ends at 2 GiB; what is not weights is a few hundred kilobytes.
_MAX_BYTES = (2 << 30) - (4 << 20)
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def to_onnx(graph: DeploymentGraph, spec: ModelSpec, *, opset: int = DEFAULT_OPSET) -> Any:
    """The graph as an ``onnx.ModelProto`` in fp32 with a dynamic batch and the spec inside.

    Raises UsageError for an opset out of range, ExportError where the weights do not fit into one
    ONNX file or the exporter fails.
    """
    check_opset(opset)
    check_size(graph)
    height, width = spec.preprocess.height, spec.preprocess.width
    images = torch.zeros((_TRACE_BATCH, height, width, 3), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                graph.eval(),
                (images,),
                input_names=[INPUT_NAME],
                output_names=[output.name for output in spec.outputs],
                dynamic_shapes={INPUT_NAME: {0: batch}},
                opset_version=max(opset, _TRACED_OPSET),
                dynamo=True,
                verbose=False,
            )
    except Exception as err:  # the exporter raises a dozen kinds of its own
        first = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise ExportError(
            f"PyTorch {torch.__version__} cannot trace {spec.vit.model} + {spec.cnn.model}: "
            f"{first}; try another backbone or PyTorch version"
        ) from err
    assert program is not None
    model = program.model_proto
    return tidy(model, spec, opset)


def check_opset(opset: int) -> None:
    """UsageError where the opset is out of range."""
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise UsageError(
            f"opset is {opset}; expected {MIN_OPSET} to {MAX_OPSET}: below, LayerNormalization is "
            f"not one operator; leave --opset out for {DEFAULT_OPSET}"
        )


def check_size(graph: torch.nn.Module) -> None:
    """ExportError where the fp32 weights do not fit into one ONNX file."""
    tensors = [*graph.parameters(), *graph.buffers()]
    size = sum(t.numel() * t.element_size() for t in tensors)
    if size > _MAX_BYTES:
        raise ExportError(
            f"the weights take {size / 2**30:.1f} GiB; one ONNX file holds 2 GiB at most: choose "
            "smaller backbones"
        )


def tidy(model: Any, spec: ModelSpec, opset: int) -> Any:
    """The exporter's model with scoped names, plain operators and the spec."""
    _scope_names(model.graph)
    _global_pools(model.graph)
    if opset < _TRACED_OPSET:
        _axes_attributes(model.graph)
    prune(model.graph)
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    _set_batch_dimension(model.graph, spec)
    version = opset if opset < _TRACED_OPSET else model.opset_import[0].version
    tidied = helper.make_model(
        model.graph,
        opset_imports=[helper.make_opsetid("", version)],
        producer_name="hybrid-export",
        ir_version=_ir_version(version),
    )
    set_metadata(tidied, {METADATA_KEY: spec.to_json()})
    return tidied


def save(model: Any, path: str | os.PathLike[str]) -> Path:
    """Check the model and write it, whole or not at all; returns the path."""
    path = Path(path)
    try:
        onnx.checker.check_model(model)
    except Exception as err:
        raise ExportError(f"{path.name} is not a valid ONNX model: {_first_line(err)}") from err
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return path


def load(path: str | os.PathLike[str]) -> Any:
    """The ``onnx.ModelProto`` of a file."""
    return onnx.load(str(path))


def set_metadata(model: Any, values: Mapping[str, str]) -> None:
    """Replace these keys of ``metadata_props``."""
    kept = {p.key: p.value for p in model.metadata_props if p.key not in values}
    del model.metadata_props[:]
    helper.set_model_props(model, {**kept, **values})


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
    """Name nodes by where they stand in the network, such as /vit/blocks.3/norm1/LayerNorm…"""
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
    """Means over both image axes as GlobalAveragePool, which means the same in every opset."""
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
    """The axes of reductions as attributes, which is how opset 17 has all of them but sums."""
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
    """The axes of reductions as inputs, which is how opset 18 and later have them."""
    for node in graph.node:
        found = [a for a in node.attribute if a.name == "axes"]
        if not node.op_type.startswith("Reduce") or not found:
            continue
        name = f"{node.name}/axes"
        graph.initializer.append(numpy_helper.from_array(np.array(found[0].ints, np.int64), name))
        node.input.append(name)
        node.attribute.remove(found[0])


def _set_batch_dimension(graph: Any, spec: ModelSpec) -> None:
    """The input's and outputs' shapes as the spec has them, the first dimension dynamic."""
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for value, output in zip(graph.output, spec.outputs, strict=True):
        shape = helper.make_tensor_value_info(
            value.name, value.type.tensor_type.elem_type, list(output.shape)
        )
        value.CopyFrom(shape)


def _ir_version(opset: int) -> int:
    """The lowest file version that may hold this opset, so that older readers take it."""
    version: int = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    return max(version, 8)


def _first_line(err: Exception) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter warns of its own deprecations and logs its steps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)


def weight_bytes(model: Any) -> int:
    """Bytes of all initializers."""
    return sum(
        math.prod(t.dims) * np.dtype(helper.tensor_dtype_to_np_dtype(t.data_type)).itemsize
        for t in model.graph.initializer
    )
