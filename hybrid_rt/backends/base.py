"""What every backend implements and is opened with: Session, SessionOptions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.bundle.manifest import Bundle, BundleFile
from hybrid_rt.errors import UsageError
from hybrid_rt.spec import ModelSpec

Pixels: TypeAlias = NDArray[np.uint8]

Outputs: TypeAlias = dict[str, NDArray[np.float32]]


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
    the file leaves it open ("fp32" or "bf16"); by default what the file is validated for.
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
    """What a backend module has: a class that opens files."""

    def open(self, path: Path, options: SessionOptions) -> Session:
        """Open a file whose digest was checked, or raise a BackendError or ModelFileError."""
        ...
