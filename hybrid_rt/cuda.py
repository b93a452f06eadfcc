"""Device memory, pinned host memory, streams and graphs of one GPU, through PyCUDA.

The GPU's *primary* context is used, the one that PyTorch and the CUDA runtime share, retained once
per process and made current around each piece of work only: nothing is current afterwards that was
not current before. ``pycuda.autoinit`` would make a second context and is never imported. CUDA
graphs, which PyCUDA does not have, go through ``cuda-bindings`` on the same streams.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hybrid_rt.cuda_driver import CudaDevice
from hybrid_rt.errors import BackendError, BackendMissingError, DeviceError

#: cuStreamCreate: do not wait for the legacy default stream, which PyTorch uses.
_STREAM_NON_BLOCKING = 1

_GRAPH_MODULES = ("cuda.bindings.driver", "cuda.cuda")  # since cuda-bindings 12.8, and before

_lock = threading.Lock()
_opened: dict[int, Gpu] = {}


class Gpu:
    """One GPU's primary context. Get it from ``open_gpu``; it lives as long as the process.

    Releasing the context would pull it from under whoever else uses it in this process, so it is
    kept, as PyTorch keeps it. Memory and streams are freed by their owners.
    """

    def __init__(self, device: CudaDevice, driver: Any) -> None:
        self.device = device
        self._driver = driver
        driver.init()
        self._context = driver.Device(device.index).retain_primary_context()
        # At exit, after the sessions opened on it: PyCUDA's own destructor would detach a primary
        # context as if it were one that it made.
        weakref.finalize(self, self._context.detach)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the context current in this thread; CUDA's errors become BackendError."""
        with self._errors():
            self._context.push()
        try:
            with self._errors():
                yield
        finally:
            self._driver.Context.pop()

    def stream(self) -> Any:
        """A new stream; ``stream.handle`` is its number. Freed with its last reference."""
        return self._driver.Stream(_STREAM_NON_BLOCKING)

    def allocate(self, size: int) -> Any:
        """``size`` bytes of device memory; ``int(…)`` is the address, ``.free()`` gives it back."""
        return self._driver.mem_alloc(max(size, 1))

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Page-locked host memory as an array, which the GPU reads and writes by itself."""
        array: NDArray[Any] = self._driver.pagelocked_empty(shape, np.dtype(dtype))
        return array

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Any) -> None:
        """Queue a copy of a pinned, contiguous array to the device."""
        self._driver.memcpy_htod_async(target, source, stream)

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Any) -> None:
        """Queue a copy from the device into a pinned, contiguous array."""
        self._driver.memcpy_dtoh_async(target, source, stream)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as err:
            text = " ".join(str(err).split())
            advice = ""
            if "memory" in text:
                advice = (
                    "; another process may hold the memory (nvidia-smi shows it): free it, set "
                    "memory_limit, or build the plan with a smaller --max-batch"
                )
            raise BackendError(f"CUDA on {self.device}: {text}{advice}") from err


def open_gpu(device: CudaDevice) -> Gpu:
    """The Gpu of a device that ``cuda_driver.cuda_device`` gave: the same object each time.

    Raises BackendMissingError without PyCUDA, DeviceError where the context cannot be had.
    """
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as err:
        raise BackendMissingError(
            f"PyCUDA does not import ({err}); TensorRT plans need it: pip install pycuda, which "
            "is built from source and needs the CUDA toolkit (nvcc) on the PATH"
        ) from err
    with _lock:
        if device.index not in _opened:
            try:
                _opened[device.index] = Gpu(device, driver)
            except driver.Error as err:
                raise DeviceError(
                    f"cannot use {device}: {err}; nvidia-smi shows whether another process has it "
                    "for itself"
                ) from err
        return _opened[device.index]


def load_graph_driver() -> Any | None:
    """The module of cuda-bindings that records CUDA graphs; None where it is not installed."""
    for name in _GRAPH_MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


class CudaGraph:
    """Work recorded from a stream, replayed in one launch.

    The memory that the work uses has to stay where it was when the work was recorded.
    """

    def __init__(self, bindings: Any, executable: Any) -> None:
        self._bindings = bindings
        self._executable: Any = executable

    @classmethod
    def record(cls, bindings: Any, stream: int, work: Callable[[], None]) -> CudaGraph:
        """Record what ``work`` queues on the stream, without running it.

        Other threads may allocate memory and launch work meanwhile. Raises BackendError where
        something in the work cannot be recorded; the stream can be used again afterwards.
        """
        handle = bindings.CUstream(stream)
        mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check(bindings, bindings.cuStreamBeginCapture(handle, mode), "begin recording")
        try:
            work()
        except BaseException:
            bindings.cuStreamEndCapture(handle)  # gives the stream back; there is no graph
            raise
        graph = _check(bindings, bindings.cuStreamEndCapture(handle), "record")
        try:
            executable = _check(bindings, bindings.cuGraphInstantiate(graph, 0), "instantiate")
        finally:
            bindings.cuGraphDestroy(graph)
        return cls(bindings, executable)

    def launch(self, stream: int) -> None:
        """Queue the recorded work on the stream."""
        bindings = self._bindings
        result = bindings.cuGraphLaunch(self._executable, bindings.CUstream(stream))
        _check(bindings, result, "launch")

    def close(self) -> None:
        """Free the graph. May be called twice."""
        executable, self._executable = self._executable, None
        if executable is not None:
            self._bindings.cuGraphExecDestroy(executable)


def _check(bindings: Any, result: tuple[Any, ...], what: str) -> Any:
    """The value of a cuda-bindings call, which returns its status first."""
    status = result[0]
    if int(status) != 0:
        name = getattr(status, "name", str(status))
        raise BackendError(f"cannot {what} a CUDA graph: {name}")
    return result[1] if len(result) > 1 else None
