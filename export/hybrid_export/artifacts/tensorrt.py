"""TensorRT plans of an export: which to build, from which file, and how they are certified."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hybrid_export.options import ExportOptions
from hybrid_rt.cuda import provider_problem
from hybrid_rt.errors import BackendError, BackendMissingError, DeviceError, ExportError
from hybrid_rt.tensorrt.builder import build_engine
from hybrid_rt.tensorrt.builder.build_engine import BuiltPlan
from hybrid_rt.tensorrt.library import LibraryName


@dataclass(frozen=True)
class PlanRequest:
    """A plan to build: its file name, its source in the bundle, and for which GPUs."""

    name: str
    source: str
    capabilities: tuple[str, ...]


def plan_requests(options: ExportOptions, sources: Sequence[str]) -> list[PlanRequest]:
    """The plans of an export whose reduced or, if none, fp32 ONNX files are ``sources``.

    The first source gives ``model.plan``, others carry their precision: ``model.int8.plan``. With
    TensorRT-RTX there is one plan a GPU generation, such as ``model.sm89.plan``.
    """
    requests = []
    for i, source in enumerate(sources):
        precision = Path(source).stem.partition(".")[2]
        stem = "model" if i == 0 or not precision else f"model.{precision}"
        if options.compute_capabilities:
            requests += [
                PlanRequest(f"{stem}.{gpu.lower()}.plan", source, (gpu,))
                for gpu in options.compute_capabilities
            ]
        else:
            requests.append(PlanRequest(f"{stem}.plan", source, ()))
    return requests


def why_no_plan(options: ExportOptions) -> str | None:
    """One line that says why no plan can be built here and how to get one; None where one can.

    Raises BackendMissingError or DeviceError where plans were asked for explicitly.
    """
    library = "auto" if options.plans == "auto" else options.plans
    assert library != "none"
    ahead = bool(options.compute_capabilities)
    reason = why_no_tensorrt(library, ahead_of_time=ahead)
    missing = reason is not None and "not installed" in reason
    if reason is None and not ahead:  # a plan is run and compared where it was built
        reason = provider_problem()
        missing = reason is not None
    if reason is None or options.plans == "auto":
        return reason
    raise (BackendMissingError if missing else DeviceError)(reason)


def build(request: PlanRequest, options: ExportOptions, folder: Path, progress: Any) -> BuiltPlan:
    """Build one plan in the folder that holds its source."""
    workspace = options.workspace_mib
    return build_plan(
        folder / request.source,
        folder / request.name,
        library="auto" if options.plans in ("auto", "none") else options.plans,
        compute_capabilities=request.capabilities,
        max_batch=options.max_batch,
        opt_batch=options.opt_batch,
        workspace_bytes=None if workspace is None else workspace << 20,
        timing_cache=options.timing_cache,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        progress=progress,
    )


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
