"""The deployment graph as an ONNX file that every backend reads the same way.

Traced with a batch of two, since a sample batch of one freezes the batch; tidied so that nothing
depends on the exporter: scoped node names, no shape arithmetic, no exporter metadata, the spec in
``metadata_props``.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from hybrid_export.network.deployment import INPUT_NAME, DeploymentGraph
from hybrid_export.onnx_graph.cleanup import TRACED_OPSET, tidy
from hybrid_export.onnx_graph.opset import DEFAULT_OPSET, check_opset
from hybrid_rt.errors import ExportError
from hybrid_rt.spec import ModelSpec

_TRACE_BATCH = 2
#: A protobuf message ends at 2 GiB; what is not weights is a few hundred kilobytes.
_MAX_BYTES = (2 << 30) - (4 << 20)


def to_onnx(graph: DeploymentGraph, spec: ModelSpec, *, opset: int = DEFAULT_OPSET) -> Any:
    """Return the graph as an ``onnx.ModelProto``: fp32, a dynamic batch, the spec inside.

    Raises UsageError for an opset out of range, ExportError if the weights do not fit into one
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
                opset_version=max(opset, TRACED_OPSET),
                dynamo=True,
                verbose=False,
            )
    except Exception as err:  # the exporter raises a dozen kinds of its own
        first = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise ExportError(
            f"PyTorch {torch.__version__} cannot trace {spec.vit.model} + {spec.cnn.model}: "
            f"{first}; try another backbone or PyTorch version"
        ) from err
    assert program is not None
    return tidy(program.model_proto, spec, opset)


def check_size(graph: torch.nn.Module) -> None:
    """Raise ExportError if the fp32 weights do not fit into one ONNX file."""
    tensors = [*graph.parameters(), *graph.buffers()]
    size = sum(t.numel() * t.element_size() for t in tensors)
    if size > _MAX_BYTES:
        raise ExportError(
            f"the weights take {size / 2**30:.1f} GiB; one ONNX file holds 2 GiB at most: choose "
            "smaller backbones"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter, which warns of its own deprecations and logs its steps."""
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
