"""Write an ONNX file of one precision, with as little of it in FP32 as passes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hybrid_export.onnx_graph.dtype_report import SMALLEST_SHARE, WEIGHT_TYPES, graph_dtype_report
from hybrid_export.onnx_graph.evaluator import RoundingEvaluator
from hybrid_export.onnx_graph.io import save
from hybrid_export.parity.compare import ParityReport, compare
from hybrid_export.parity.tolerances import TOLERANCES, PrecisionName
from hybrid_export.precision.fallback import Attempt, Lower
from hybrid_export.sessions import open_file
from hybrid_export.state import ExportState
from hybrid_rt.backends.base import Session
from hybrid_rt.errors import BackendMissingError, DeviceError

#: The hint that OpenVINO also runs the file with. It computes FP16 files in FP32, so not those.
_OPENVINO_HINT: dict[PrecisionName, str] = {"fp32": "fp32", "bf16": "bf16", "int8": "fp32"}

#: Whose tolerances hold for the file on OpenVINO with the bf16 hint.
_BF16_HINT_TOLERANCES: dict[PrecisionName, PrecisionName] = {"fp32": "bf16", "int8": "int8"}


def write_onnx(
    state: ExportState, precision: PrecisionName, attempts: Iterable[Attempt], lower: Lower
) -> str | None:
    """Write ``model.PRECISION.onnx`` (``model.onnx`` for fp32) by the first attempt that passes.

    Returns None, or the reason if no attempt passes; then no file is left.
    """
    name = "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"
    facts = {} if precision == "fp32" else {"source": "model.onnx"}
    path = state.staged / name
    half = precision in ("fp16", "bf16")
    reason, failed = "", None
    for attempt in attempts:
        model = lower(attempt.nodes)
        save(model, path)
        dtype_report = graph_dtype_report(path)
        share = dtype_report["weight_share"].get(WEIGHT_TYPES[precision], 0.0)
        if half and share < SMALLEST_SHARE:
            reason = f"{name} would have {share:.0%} of its weights in {precision}"
            break
        session = RoundingEvaluator(model) if half else open_file(path, state.spec)
        # fp32 has one attempt: nothing is saved by a quick comparison first.
        report = None if precision == "fp32" else state.compare_few(session, precision)
        if report is None or report.passed:
            also = _openvino(state, path, _OPENVINO_HINT.get(precision))
            report = state.validate(session, precision, also)
        report.kept_fp32 = list(attempt.kept)
        kept = f" (kept in FP32: {', '.join(attempt.kept)})" if attempt.kept else ""
        state.log(f"{name}{kept}: parity {report.verdict}: {report.summary()}")
        if report.passed:
            _try_bf16_hint(state, report, path, precision)
            state.add(path, precision, report, dtype_report=dtype_report, **facts)
            return None
        failed = (report, model)
    path.unlink(missing_ok=True)
    if failed is not None:
        reason = state.describe_failure(name, failed[0], precision, failed[1])
    return reason


def _openvino(state: ExportState, path: Path, hint: str | None) -> dict[str, Session]:
    """Open the file on OpenVINO, by its hint; empty if it is not installed or the CPU lacks it."""
    try:
        return {hint: open_file(path, state.spec, "openvino", precision=hint)} if hint else {}
    except (BackendMissingError, DeviceError):
        return {}


def _try_bf16_hint(
    state: ExportState, report: ParityReport, path: Path, precision: PrecisionName
) -> None:
    """Add a check of the file run with the bf16 hint, on all images, if it passes.

    OpenVINO computes in bf16 what the file has in float32, and the runtime lets it if this
    check has passed. OpenVINO's own default on such a CPU is the same hint, unchecked.
    """
    if precision not in _BF16_HINT_TOLERANCES:
        return
    tolerances = TOLERANCES[_BF16_HINT_TOLERANCES[precision]]
    for hint, session in _openvino(state, path, "bf16").items():
        other = compare(
            session, state.reference, state.spec, tolerances, brief=True, precision_hint=hint
        )
        state.log(f"{path.name}, bf16 hint: {other.summary()}")
        if other.passed:
            report.also.append(other)
        else:
            failed = "; ".join(other.failures)
            state.log(f"{path.name}: not validated with the bf16 hint: {failed}")
