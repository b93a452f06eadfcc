"""The interface of a backend: the Session protocol, and the options a session is opened with."""

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
    #: The device in use: "cpu" or "cuda:0".
    device: str
    #: A few words on the configuration in use, such as "CPUExecutionProvider" or "bf16, 2 streams".
    detail: str
    #: Names of the outputs, in the graph's order.
    output_names: tuple[str, ...]

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs by name, as copies, for uint8 ``[batch, height, width, 3]``."""
        ...

    def close(self) -> None:
        """Free the library's objects. May be called twice."""
        ...


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """The options of a session. ``None`` leaves the choice to the backend.

    Attributes:
        device: "auto", "cpu" or "cuda:N".
        precision: The precision to compute in if the file leaves it open, "fp32" or "bf16". By
            default the one that the file is validated for.
        batch_size: The usual size of a batch.
        mode: "throughput" lets several calls of ``run`` work side by side.
        cache: Whether compiled models may be kept on disk.
        memory_limit: Bytes of GPU memory.
        bundle: The file's bundle, if it has one.
        entry: The file's entry in the bundle.
        rebuild: Whether a plan for another machine may be built again from its source.
    """

    spec: ModelSpec
    device: str = "auto"
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    batch_size: int = 8
    mode: Literal["latency", "throughput"] = "latency"
    cache: bool = False
    memory_limit: int | None = None
    bundle: Bundle | None = None
    entry: BundleFile | None = None
    rebuild: bool = False

    def __post_init__(self) -> None:
        if self.precision not in (None, "auto", "fp32", "bf16"):
            raise UsageError(f"precision is {self.precision!r}; expected 'auto', 'fp32' or 'bf16'")
        if self.mode not in ("latency", "throughput"):
            raise UsageError(f"mode is {self.mode!r}; expected 'latency' or 'throughput'")
        check_positive(
            threads=self.threads, batch_size=self.batch_size, memory_limit=self.memory_limit
        )


def check_positive(**values: int | None) -> None:
    """Raise UsageError for a value that is neither None nor a positive integer."""
    for name, value in values.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and value > 0):
            raise UsageError(f"{name} is {value!r}; expected a positive integer")


class SessionClass(Protocol):
    """The class by which a backend's module opens files."""

    def open(self, path: Path, options: SessionOptions) -> Session:
        """Open a file whose digest was checked.

        Raises:
            BackendError: The library cannot run the file here.
            ModelFileError: The file is damaged or another model's.
        """
        ...
