"""Open the model behind a path: find the file, open a session on it, and record why this one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid_rt.backends.base import Session, SessionOptions
from hybrid_rt.backends.gpu_support import warn_once, why_gpu_unused
from hybrid_rt.backends.registry import open_session
from hybrid_rt.bundle.manifest import Bundle
from hybrid_rt.selection import ModelFile, find_model


def open_model(
    path: Path, *, device: str, backend: str | None, precision: str | None, **asked: Any
) -> tuple[Session, ModelFile]:
    """Return a session on the model file behind a path, and the file with what really runs.

    The arguments are HybridEngine's. Raises what find_model and open_session raise.
    """
    model = find_model(path, device=device, backend=backend, precision=precision)
    options = SessionOptions(
        spec=model.spec,
        bundle=model.bundle,
        entry=model.entry,
        device=device,
        backend=backend or model.backend,
        precision=precision,
        **asked,
    )
    if precision in (None, "auto"):
        options = replace(options, precision=model.precision)
    session = open_session(model.path, spec=model.spec, options=options)
    if options.rebuild and model.bundle is not None:  # its plan may be another one now
        bundle = Bundle.load(model.path.parent)
        model = replace(model, bundle=bundle, entry=bundle.files[model.path.name])
    model = replace(model, backend=session.backend, precision=options.precision)
    if device == "auto" and session.device == "cpu" and backend in (None, "onnxruntime"):
        model = _with_unused_gpu(model)
    return session, model


def _with_unused_gpu(model: ModelFile) -> ModelFile:
    """The model with what is missing to use the GPU in its reason; it is logged once too."""
    files = model.bundle.files.values() if model.bundle is not None else ()
    missing = why_gpu_unused(plans=any(file.format == "plan" for file in files))
    if missing is None:
        return model
    warn_once(missing)
    return replace(model, reason=f"{model.reason}; {missing}")
