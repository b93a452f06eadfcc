"""TensorRT plans for the exporter: built by hybrid_rt.tensorrt.builder, with the exporter's errors.

built = build_plan("model.fp16.onnx", "model.plan", compute_capabilities=["SM89"])
"""

from __future__ import annotations

import os
from typing import Any, Literal

from hybrid_rt.errors import BackendError, BackendMissingError, DeviceError, ExportError
from hybrid_rt.tensorrt.builder import build_engine
from hybrid_rt.tensorrt.builder.build_engine import BuiltPlan
from hybrid_rt.tensorrt.library import LibraryName

__all__ = ["build_plan", "why_no_tensorrt"]


def build_plan(
    onnx_path: str | os.PathLike[str], plan_path: str | os.PathLike[str], **options: Any
) -> BuiltPlan:
    """``build_engine.build_plan``, which lists the options; a failed build is an ExportError."""
    try:
        return build_engine.build_plan(onnx_path, plan_path, **options)
    except (BackendMissingError, DeviceError):
        raise
    except BackendError as err:
        raise ExportError(str(err)) from err


def why_no_tensorrt(
    library: LibraryName | Literal["auto"] = "auto", *, ahead_of_time: bool = False
) -> str | None:
    """Why no plan can be built here and how to get one, as one line; None where one can.

    ``ahead_of_time`` asks about TensorRT-RTX plans for given GPUs, which need no GPU here.
    """
    return build_engine.why_no_plan(library, ahead_of_time=ahead_of_time)
