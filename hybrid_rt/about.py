"""Describe an engine: file, library, device, precision, parity report, versions."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

from hybrid_rt.backends.base import Session
from hybrid_rt.spec import ModelSpec

if TYPE_CHECKING:
    from hybrid_rt.selection import ModelFile

_LIBRARIES = (
    "hybrid-rt",
    "numpy",
    "pillow",
    "pydicom",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "pycuda",
    "cuda-bindings",
)


def engine_info(session: Session, spec: ModelSpec, model: ModelFile | None) -> dict[str, Any]:
    """JSON values for HybridEngine.info."""
    entry = None if model is None else model.entry
    return {
        "path": None if model is None else str(model.path),
        "reason": "opened by the caller" if model is None else model.reason,
        "backend": session.backend,
        "device": session.device,
        "detail": session.detail,
        "precision": None if entry is None else entry.precision,
        "sha256": None if entry is None else entry.sha256,
        "validated_by": None if model is None else model.validated_by,
        "parity_report": None
        if entry is None or entry.parity_report is None
        else dict(entry.parity_report),
        "classes": list(spec.classes),
        "input": [spec.preprocess.height, spec.preprocess.width, 3],
        "outputs": list(session.output_names),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the libraries that matter, and of Python."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
