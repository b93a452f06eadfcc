"""Write TensorRT engines: which to build, from which file, and how they are validated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid_export.onnx_graph.dtype_report import check_dtype_report
from hybrid_export.options import ExportOptions
from hybrid_export.sessions import open_file
from hybrid_export.state import ExportState
from hybrid_rt.bundle.manifest import BuiltFor
from hybrid_rt.cuda import provider_problem
from hybrid_rt.errors import BackendMissingError, DeviceError
from hybrid_rt.tensorrt.builder import build_engine as builder


@dataclass(frozen=True)
class EngineRequest:
    """An engine to build: its file name, its source in the bundle, and for which GPUs."""

    name: str
    source: str
    capabilities: tuple[str, ...]


def engine_requests(options: ExportOptions, sources: Sequence[str]) -> list[EngineRequest]:
    """Return the engines of an export whose reduced or, if none, fp32 ONNX files are ``sources``.

    The first source becomes ``model.plan``, others carry their precision: ``model.int8.plan``. With
    TensorRT-RTX there is one engine a GPU generation, such as ``model.sm89.plan``.
    """
    requests = []
    for i, source in enumerate(sources):
        precision = Path(source).stem.partition(".")[2]
        stem = "model" if i == 0 or not precision else f"model.{precision}"
        for gpu in options.compute_capabilities:
            requests.append(EngineRequest(f"{stem}.{gpu.lower()}.plan", source, (gpu,)))
        if not options.compute_capabilities:
            requests.append(EngineRequest(f"{stem}.plan", source, ()))
    return requests


def why_no_engine(options: ExportOptions) -> str | None:
    """Return why no engine can be built here and what to do, as one line; None if one can.

    Raises BackendMissingError or DeviceError if engines were asked for explicitly.
    """
    if options.plans == "none":
        return None
    ahead = bool(options.compute_capabilities)
    reason = builder.why_no_engine(options.plans, ahead_of_time=ahead)
    missing = reason is not None and "not installed" in reason
    if reason is None and not ahead:  # a plan is run and compared on the machine that built it
        reason = provider_problem()
        missing = reason is not None
    if reason is None or options.plans == "auto":
        return reason
    raise (BackendMissingError if missing else DeviceError)(reason)


def write_engines(state: ExportState, no_engine: str | None) -> None:
    """Write model.plan and its like, from the reduced precisions that were asked for and passed."""
    options = state.options
    asked = [p for p in ("fp16", "bf16", "int8") if getattr(options, p)]
    sources = [f"model.{p}.onnx" for p in asked if f"model.{p}.onnx" in state.bundle.files]
    if options.plans == "none" or (asked and not sources):
        return
    if not asked and options.plans == "auto":
        return
    if no_engine is not None:
        state.log(f"No TensorRT engine: {no_engine}")
        return
    for request in engine_requests(options, sources or ["model.onnx"]):
        _write_engine(state, request)


def _write_engine(state: ExportState, request: EngineRequest) -> None:
    """Build one engine, validate it if it is for this machine, and add it to the bundle."""
    options, source = state.options, state.bundle.files[request.source]
    built = builder.build_engine(
        state.staged / request.source,
        state.staged / request.name,
        library="auto" if options.plans == "none" else options.plans,
        compute_capabilities=request.capabilities,
        max_batch=options.max_batch,
        opt_batch=options.opt_batch,
        workspace_bytes=None if options.workspace_mib is None else options.workspace_mib << 20,
        timing_cache=options.timing_cache,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
    )
    built_for = BuiltFor(**built.built_for)
    report = None
    if not request.capabilities:
        backend = "tensorrt-rtx" if built_for.library == "tensorrt_rtx" else "tensorrt"
        session = open_file(built.path, state.spec, backend, device="cuda:0")
        report = state.validate(session, source.precision)
        state.log(f"{request.name}: parity {report.verdict}: {report.summary()}")
        if not report.passed:
            built.path.unlink()
            failed = "; ".join(report.all_failures())
            state.failures.append(f"{request.name} does not equal PyTorch: {failed}.")
            return
    if source.precision in ("fp16", "bf16"):
        check_dtype_report(built.dtype_report, source.precision, name=request.name)
    state.add(
        built.path,
        source.precision,
        report,
        built_for=built_for,
        source=request.source,
        dtype_report=built.dtype_report,
    )
    where = "" if report else "; not run, since it is for another machine's GPU"
    state.log(
        f"{request.name}: built by {built_for.library} {built_for.version} for compute capability "
        f"{built_for.compute_capability}, weights {built.dtype_report['weight_share']}{where}"
    )
