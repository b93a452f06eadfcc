"""Write model.onnx: everything else is made from it."""

from __future__ import annotations

from hybrid_export.onnx_graph.dtype_report import graph_dtype_report
from hybrid_export.onnx_graph.io import save
from hybrid_export.runners import session
from hybrid_export.state import Job
from hybrid_rt.errors import ParityError


def write_fp32(job: Job) -> None:
    """model.onnx: everything else is made from it, so a failure here ends the export."""
    path = save(job.fp32, job.staged / "model.onnx")
    runner = session(path, job.spec)
    report = job.validate(runner, "fp32", *job.openvino(path, "fp32"))
    job.report(path.name, report)
    if not report.passed:
        raise ParityError(job.failure(path.name, report, "fp32", job.fp32))
    job.try_bf16(report, path, "bf16")
    job.add(path, "fp32", report, dtype_report=graph_dtype_report(path))
