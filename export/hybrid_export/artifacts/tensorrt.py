"""TensorRT plans of an export: which to build, from which file, and how they are certified."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hybrid_export.onnx_graph.dtype_report import SMALLEST_SHARE, WEIGHT_TYPES
from hybrid_export.options import ExportOptions
from hybrid_export.parity.tolerances import PrecisionName
from hybrid_export.runners import session
from hybrid_export.state import Job
from hybrid_rt.bundle.manifest import BuiltFor
from hybrid_rt.cuda import provider_problem
from hybrid_rt.errors import (
    BackendError,
    BackendMissingError,
    DeviceError,
    ExportError,
    ParityError,
)
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


def write_plans(job: Job, no_plan: str | None) -> None:
    """model.plan and its like, from the smallest precision that was asked for and passed."""
    options = job.options
    made = [p for p in ("fp16", "bf16", "int8") if f"model.{p}.onnx" in job.bundle.files]
    asked: list[PrecisionName] = [p for p in ("fp16", "bf16", "int8") if getattr(options, p)]
    sources = [f"model.{p}.onnx" for p in asked if p in made]
    if options.plans == "none" or (asked and not sources):
        return
    if not asked and options.plans == "auto":
        return
    if no_plan is not None:
        job.say(f"No TensorRT plan: {no_plan}")
        return
    for request in plan_requests(options, sources or ["model.onnx"]):
        built = build(request, options, job.staged, None)
        source = job.bundle.files[request.source]
        certificate = None
        if not request.capabilities:
            runner = session(built.path, job.spec, _plan_backend(built.built_for), device="cuda:0")
            certificate = job.certify(runner, source.precision)
            job.report(built.path.name, certificate)
            if not certificate.passed:
                built.path.unlink()
                failed = "; ".join(certificate.all_failures())
                job.failures.append(f"{request.name} does not equal PyTorch: {failed}.")
                continue
        _check_share(job, request.name, built.receipt, source.precision)
        job.add(
            built.path,
            source.precision,
            certificate,
            built_for=BuiltFor(**built.built_for),
            source=request.source,
            receipt=built.receipt,
        )
        where = "" if certificate else "; not run, since it is for another machine's GPU"
        job.say(
            f"{request.name}: built by {built.built_for['library']} {built.built_for['version']} "
            f"for compute capability {built.built_for['compute_capability']}, weights "
            f"{built.receipt['weight_share']}{where}"
        )


def _plan_backend(built_for: dict[str, object]) -> str:
    return "tensorrt-rtx" if built_for["library"] == "tensorrt_rtx" else "tensorrt"


def _check_share(
    job: Job, name: str, receipt: dict[str, dict[str, float]], precision: PrecisionName
) -> None:
    """A plan that is not what was asked for is a failure, whatever it answers."""
    share = receipt["weight_share"].get(WEIGHT_TYPES[precision], 0.0)
    if precision in ("fp16", "bf16") and share < SMALLEST_SHARE:
        raise ParityError(
            f"{name} has {share:.0%} of its weight bytes in {precision}; expected at least "
            f"{SMALLEST_SHARE:.0%}: TensorRT built {receipt['weight_share']}; nothing was written"
        )
