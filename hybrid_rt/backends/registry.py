"""The backends by name, and the choice of one for a file.

``open_session`` chooses the library from the file's suffix and from what is installed:

========  ==========================================================================
suffix    tried in this order
========  ==========================================================================
.onnx     on a GPU: onnxruntime; on a CPU: openvino, then onnxruntime
.plan     tensorrt
========  ==========================================================================
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from hybrid_rt.backends.base import Session, SessionClass, SessionOptions
from hybrid_rt.backends.gpu_support import onnxruntime_has_gpu
from hybrid_rt.cuda import parse_device
from hybrid_rt.errors import BackendMissingError, ModelFileError, UsageError
from hybrid_rt.spec import ModelSpec


@dataclass(frozen=True)
class _Backend:
    module: str  # of this package, imported when it is used
    session: str
    library: str  # the third-party module; found without an import
    extra: str


BACKENDS = {
    "onnxruntime": _Backend(
        "hybrid_rt.backends.onnxruntime", "OnnxRuntimeSession", "onnxruntime", "cpu"
    ),
    "onnxruntime-tensorrt": _Backend(
        "hybrid_rt.backends.onnxruntime", "OnnxRuntimeSession", "onnxruntime", "gpu"
    ),
    "openvino": _Backend("hybrid_rt.backends.openvino", "OpenVinoSession", "openvino", "cpu"),
    "tensorrt": _Backend("hybrid_rt.backends.tensorrt", "TensorRTSession", "tensorrt", "gpu"),
    "tensorrt-rtx": _Backend(
        "hybrid_rt.backends.tensorrt", "TensorRTSession", "tensorrt_rtx", "gpu"
    ),
    "fake": _Backend("hybrid_rt.testing", "FakeSession", "numpy", "cpu"),
}

#: The backends that can run a file, by its suffix.
SUFFIXES = {
    ".onnx": ("openvino", "onnxruntime", "onnxruntime-tensorrt", "fake"),
    ".plan": ("tensorrt", "tensorrt-rtx", "fake"),
    ".engine": ("tensorrt", "tensorrt-rtx", "fake"),
}


def open_session(
    path: str | Path,
    *,
    spec: ModelSpec,
    device: str = "auto",
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    options: SessionOptions | None = None,
) -> Session:
    """Open a model file with the library that fits it; ``options`` replaces the other arguments.

    Raises:
        ModelFileError: The file cannot be run.
        BackendMissingError: The library is not installed.
        DeviceError: The machine has no such device.
    """
    options = options or SessionOptions(
        spec=spec, device=device, backend=backend, precision=precision, threads=threads
    )
    path = Path(path)
    name = options.backend or choose_backend(path, options)
    _check_backend(name, path, options.device)
    module = importlib.import_module(BACKENDS[name].module)
    session_class = cast("SessionClass", getattr(module, BACKENDS[name].session))
    return session_class.open(path, options)


def choose_backend(path: Path, options: SessionOptions) -> str:
    """Return the backend that ``open_session`` takes for a file if the options name none."""
    kind, _ = parse_device(options.device)
    candidates: tuple[str, ...]
    if path.suffix == ".onnx":
        gpu = kind == "cuda" or (kind == "auto" and onnxruntime_has_gpu())
        candidates = ("onnxruntime",) if gpu else ("openvino", "onnxruntime")
    elif path.suffix in SUFFIXES:
        built_for = options.entry.built_for if options.entry else None
        rtx = built_for is not None and built_for.library == "tensorrt_rtx"
        return "tensorrt-rtx" if rtx else "tensorrt"
    else:
        raise ModelFileError(
            f"{path} ends in {path.suffix!r}; expected {', '.join(SUFFIXES)} or a bundle's folder"
        )
    for name in candidates:
        if is_installed(name):
            return name
    raise _missing(candidates, "gpu" if kind == "cuda" else None)


def is_installed(backend: str) -> bool:
    """Return whether a backend's library is installed, without importing it."""
    return importlib.util.find_spec(BACKENDS[backend].library) is not None


def _check_backend(name: str, path: Path, device: str) -> None:
    if name not in BACKENDS:
        raise UsageError(f"backend is {name!r}; expected one of {', '.join(BACKENDS)}")
    if name not in SUFFIXES.get(path.suffix, ()):
        expected = ", ".join(SUFFIXES.get(path.suffix, ())) or "none"
        raise UsageError(f"backend {name!r} cannot run {path.name}; expected one of: {expected}")
    if BACKENDS[name].module != "hybrid_rt.backends.tensorrt" and not is_installed(name):
        raise _missing((name,), "gpu" if device.startswith("cuda") else None)


def _missing(names: tuple[str, ...], extra: str | None = None) -> BackendMissingError:
    extra = extra or BACKENDS[names[0]].extra
    return BackendMissingError(
        f"{' or '.join(BACKENDS[n].library for n in names)} is not installed; run: "
        f"pip install 'hybrid-rt[{extra}]'"
    )
