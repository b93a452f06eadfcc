"""Inference backends: one small class each behind the Session protocol.

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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.backends.gpu_support import onnxruntime_gpu_problem
from hybrid_rt.bundle.manifest import Bundle, BundleFile
from hybrid_rt.cuda import parse_device
from hybrid_rt.errors import BackendMissingError, ModelFileError, UsageError
from hybrid_rt.spec import ModelSpec


class Session(Protocol):
    """An opened model file on one device.

    ``run`` may be called from many threads at once.
    """

    #: The library: "onnxruntime", "openvino", "tensorrt" or "fake".
    backend: str
    #: Where it really runs: "cpu" or "cuda:0".
    device: str
    #: What really runs, in a few words, such as "CPUExecutionProvider" or "bf16, 2 streams".
    detail: str
    #: Names of the outputs, in the graph's order.
    output_names: tuple[str, ...]

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Outputs by name, the caller's to keep, for uint8 ``[batch, height, width, 3]``."""
        ...

    def close(self) -> None:
        """Free what the library holds. May be called twice."""
        ...


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What a caller may ask of a session. ``None`` leaves the choice to the backend.

    ``device`` is "auto", "cpu" or "cuda:N". ``precision`` is what the library computes in where
    the file leaves it open ("fp32" or "bf16"); by default what the file is certified for.
    ``batch_size`` is the size batches usually have. ``mode`` "throughput" lets several calls of
    ``run`` go side by side. ``cache`` allows compiled models to be kept on disk. ``bundle`` and
    ``entry`` say what is known of the file; ``rebuild`` allows a plan made for another machine to
    be built again from its source.
    """

    spec: ModelSpec
    device: str = "auto"
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    batch_size: int = 8
    mode: Literal["latency", "throughput"] = "latency"
    cache: bool = False
    memory_limit: int | None = None  # bytes of GPU memory
    bundle: Bundle | None = None
    entry: BundleFile | None = None
    rebuild: bool = False

    def __post_init__(self) -> None:
        if self.precision not in (None, "auto", "fp32", "bf16"):
            raise UsageError(f"precision is {self.precision!r}; expected 'auto', 'fp32' or 'bf16'")
        if self.mode not in ("latency", "throughput"):
            raise UsageError(f"mode is {self.mode!r}; expected 'latency' or 'throughput'")
        for name in ("threads", "batch_size", "memory_limit"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} is {value!r}; expected a positive integer")


class SessionClass(Protocol):
    """What a backend module gives: a class that opens files."""

    def open(self, path: Path, options: SessionOptions) -> Session:
        """Open a file whose digest was checked, or raise a BackendError or ModelFileError."""
        ...


@dataclass(frozen=True)
class _Backend:
    module: str  # ours, imported when it is used
    session: str
    library: str  # theirs, looked for without importing it
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

#: Which libraries can run a file, by its suffix.
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

    Raises ModelFileError for a file that cannot be run, BackendMissingError for a library that is
    not installed, DeviceError for a device that is not there.
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
    """The name of the backend that open_session takes for a file when none is asked for."""
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
    """Whether the library behind a backend can be imported; nothing is imported to find out."""
    return importlib.util.find_spec(BACKENDS[backend].library) is not None


def check_interface(
    path: Path,
    spec: ModelSpec,
    inputs: Mapping[str, tuple[str, Sequence[int | None]]],
    outputs: Iterable[str] | Mapping[str, Sequence[int | None]],
) -> tuple[str, ...]:
    """The names of a graph's outputs, after its interface was compared with the contract.

    ``inputs`` maps a name to its type ("uint8") and its shape, where None is a dynamic size;
    ``outputs`` are names, or names with shapes. Raises ModelFileError.
    """
    size = spec.preprocess
    expected_shape = (None, size.height, size.width, 3)
    kind, shape = inputs.get("images", ("none", ()))
    fits = len(shape) == 4 and all(
        found is None or found == wanted
        for found, wanted in zip(shape, expected_shape, strict=True)
    )
    if len(inputs) != 1 or kind != "uint8" or not fits:
        found = ", ".join(f"{n} {t} {_shape(s)}" for n, (t, s) in inputs.items()) or "none"
        raise ModelFileError(
            f"{path} has the inputs {found[:200]}; its specification says images uint8 "
            f"{_shape(expected_shape)}: make the file with hybrid-export"
        )
    names = tuple(outputs)
    expected = [o.name for o in spec.outputs] or ["probabilities", "logits", "features"]
    missing = [name for name in expected if name not in names]
    if missing:
        raise ModelFileError(
            f"{path} has the outputs {', '.join(names)[:200] or 'none'}; its specification also "
            f"lists {', '.join(missing)}: export the model again"
        )
    classes = len(spec.classes)
    widths = {"probabilities": classes, "logits": classes, "features": spec.num_features}
    for name, shape in outputs.items() if isinstance(outputs, Mapping) else ():
        width = widths.get(name)
        if width is not None and (len(shape) != 2 or shape[1] not in (None, width)):
            raise ModelFileError(
                f"{path} gives {name} {_shape(shape)}; its specification says "
                f"{_shape((None, width))}: export the model again"
            )
    return names


def _shape(shape: Sequence[int | None]) -> str:
    return "[" + ",".join("batch" if size is None else str(size) for size in shape) + "]"


def _check_backend(name: str, path: Path, device: str) -> None:
    if name not in BACKENDS:
        raise UsageError(f"backend is {name!r}; expected one of {', '.join(BACKENDS)}")
    if name not in SUFFIXES.get(path.suffix, ()):
        able = ", ".join(SUFFIXES.get(path.suffix, ())) or "none"
        raise UsageError(f"backend {name!r} cannot run {path.name}; able are: {able}")
    if BACKENDS[name].module != "hybrid_rt.backends.tensorrt" and not is_installed(name):
        raise _missing((name,), "gpu" if device.startswith("cuda") else None)


def _missing(names: tuple[str, ...], extra: str | None = None) -> BackendMissingError:
    extra = extra or BACKENDS[names[0]].extra
    return BackendMissingError(
        f"{' or '.join(BACKENDS[n].library for n in names)} is not installed; run: "
        f"pip install 'hybrid-rt[{extra}]'"
    )


def onnxruntime_has_gpu() -> bool:
    """Return whether a GPU is here and the installed onnxruntime runs on it."""
    return onnxruntime_gpu_problem() is None
