"""Write model.fp16.onnx or model.bf16.onnx, with as little in FP32 as passes."""

from __future__ import annotations

from hybrid_export.onnx_graph.dtype_report import SMALLEST_SHARE, WEIGHT_TYPES, graph_dtype_report
from hybrid_export.onnx_graph.evaluator import Interpreter
from hybrid_export.onnx_graph.io import save
from hybrid_export.precision.fallback import attempts
from hybrid_export.precision.half import HalfName, to_half
from hybrid_export.state import Job

_RANGE_IMAGES = 8


def write_half(job: Job, precision: HalfName) -> bool:
    """model.fp16.onnx or model.bf16.onnx, with as little in FP32 as passes; whether one did."""
    path = job.staged / f"model.{precision}.onnx"
    images = job.reference.images.pixels[:_RANGE_IMAGES]
    reason, failed = "", None
    for attempt in attempts(job.fp32, precision, images):
        typed = to_half(job.fp32, precision, attempt.nodes)
        save(typed, path)
        dtype_report = graph_dtype_report(path)
        share = dtype_report["weight_share"].get(WEIGHT_TYPES[precision], 0.0)
        if share < SMALLEST_SHARE:
            reason = reason or f"{path.name} would have {share:.0%} of its weights in {precision}"
            break
        runner = Interpreter(typed).runner(path.name)
        report = job.screen(runner, precision)
        if report.passed:
            also = job.openvino(path, "bf16") if precision == "bf16" else []
            report = job.validate(runner, precision, *also)
        report.kept_fp32 = list(attempt.kept)
        kept = f" (kept in FP32: {', '.join(attempt.kept)})" if attempt.kept else ""
        job.report(path.name + kept, report)
        if report.passed:
            job.add(path, precision, report, source="model.onnx", dtype_report=dtype_report)
            return True
        failed = (report, typed)
    path.unlink(missing_ok=True)
    if failed is not None:
        reason = job.failure(path.name, failed[0], precision, failed[1])
    job.failures.append(f"{reason}.")
    return False
