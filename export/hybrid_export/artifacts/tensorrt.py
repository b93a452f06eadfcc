"""TensorRT engines of an export: which to build, from which file, and how they are validated."""

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
from hybrid_rt.tensorrt.builder import build_engine as builder
from hybrid_rt.tensorrt.builder.build_engine import BuiltEngine
from hybrid_rt.tensorrt.library import LibraryName


@dataclass(frozen=True)
class EngineRequest:
    """An engine to build: its file name, its source in the bundle, and for which GPUs."""

    name: str
    source: str
    capabilities: tuple[str, ...]


def engine_requests(options: ExportOptions, sources: Sequence[str]) -> list[EngineRequest]:
    """The engines of an export whose reduced or, if none, fp32 ONNX files are ``sources``.

    The first source becomes ``model.plan``, others carry their precision: ``model.int8.plan``. With
    TensorRT-RTX there is one engine a GPU generation, such as ``model.sm89.plan``.
    """
    requests = []
    for i, source in enumerate(sources):
        precision = Path(source).stem.partition(".")[2]
        stem = "model" if i == 0 or not precision else f"model.{precision}"
        if options.compute_capabilities:
            requests += [
                EngineRequest(f"{stem}.{gpu.lower()}.plan", source, (gpu,))
                for gpu in options.compute_capabilities
            ]
        else:
            requests.append(EngineRequest(f"{stem}.plan", source, ()))
    return requests


def why_no_engine(options: ExportOptions) -> str | None:
    """One line that says why no engine can be built here and how to get one; None where one can.

    Raises BackendMissingError or DeviceError if engines were asked for explicitly.
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


def build(
    request: EngineRequest, options: ExportOptions, folder: Path, progress: Any
) -> BuiltEngine:
    """Build one engine in the folder that holds its source."""
    workspace = options.workspace_mib
    return build_engine(
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


def build_engine(
    onnx_path: str | os.PathLike[str], plan_path: str | os.PathLike[str], **options: Any
) -> BuiltEngine:
    """``builder.build_engine``, which lists the options; a failed build is an ExportError."""
    try:
        return builder.build_engine(onnx_path, plan_path, **options)
    except (BackendMissingError, DeviceError):
        raise
    except BackendError as err:
        raise ExportError(str(err)) from err


def why_no_tensorrt(
    library: LibraryName | Literal["auto"] = "auto", *, ahead_of_time: bool = False
) -> str | None:
    """Why no engine can be built here and how to get one, as one line; None where one can.

    ``ahead_of_time`` asks about TensorRT-RTX plans for given GPUs, which need no GPU here.
    """
    return builder.why_no_engine(library, ahead_of_time=ahead_of_time)


def write_plans(job: Job, no_engine: str | None) -> None:
    """model.plan and its like, from the smallest precision that was asked for and passed."""
    options = job.options
    made = [p for p in ("fp16", "bf16", "int8") if f"model.{p}.onnx" in job.bundle.files]
    asked: list[PrecisionName] = [p for p in ("fp16", "bf16", "int8") if getattr(options, p)]
    sources = [f"model.{p}.onnx" for p in asked if p in made]
    if options.plans == "none" or (asked and not sources):
        return
    if not asked and options.plans == "auto":
        return
    if no_engine is not None:
        job.say(f"No TensorRT engine: {no_engine}")
        return
    for request in engine_requests(options, sources or ["model.onnx"]):
        built = build(request, options, job.staged, None)
        source = job.bundle.files[request.source]
        report = None
        if not request.capabilities:
            runner = session(built.path, job.spec, _plan_backend(built.built_for), device="cuda:0")
            report = job.validate(runner, source.precision)
            job.report(built.path.name, report)
            if not report.passed:
                built.path.unlink()
                failed = "; ".join(report.all_failures())
                job.failures.append(f"{request.name} does not equal PyTorch: {failed}.")
                continue
        _check_share(job, request.name, built.dtype_report, source.precision)
        job.add(
            built.path,
            source.precision,
            report,
            built_for=BuiltFor(**built.built_for),
            source=request.source,
            dtype_report=built.dtype_report,
        )
        where = "" if report else "; not run, since it is for another machine's GPU"
        job.say(
            f"{request.name}: built by {built.built_for['library']} {built.built_for['version']} "
            f"for compute capability {built.built_for['compute_capability']}, weights "
            f"{built.dtype_report['weight_share']}{where}"
        )


def _plan_backend(built_for: dict[str, object]) -> str:
    return "tensorrt-rtx" if built_for["library"] == "tensorrt_rtx" else "tensorrt"


def _check_share(
    job: Job, name: str, dtype_report: dict[str, dict[str, float]], precision: PrecisionName
) -> None:
    """A plan that is not what was asked for is a failure, whatever its outputs."""
    share = dtype_report["weight_share"].get(WEIGHT_TYPES[precision], 0.0)
    if precision in ("fp16", "bf16") and share < SMALLEST_SHARE:
        raise ParityError(
            f"{name} has {share:.0%} of its weight bytes in {precision}; expected at least "
            f"{SMALLEST_SHARE:.0%}: TensorRT built "
            f"{dtype_report['weight_share']}; nothing was written"
        )
