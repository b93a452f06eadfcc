"""Two libraries behind one interface: PyCUDA, and cuda-bindings if PyCUDA does not import.

Both call the same driver on the same primary context. PyCUDA is preferred, since other code in the
process may share its objects; it is built from source. cuda-bindings comes in wheels.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.errors import BackendMissingError

#: cuStreamCreate: do not wait for the legacy default stream, which PyTorch uses.
_STREAM_NON_BLOCKING = 1

_BINDINGS = ("cuda.bindings.driver", "cuda.cuda")  # since cuda-bindings 12.8, and before


class Provider(Protocol):
    """Calls of the CUDA driver.

    All but ``retain``, ``release``, ``push`` and ``pop`` need a current context. What ``stream``,
    ``allocate`` and ``pinned`` return is the library's own object, for the other calls only; the
    caller frees it, once.
    """

    #: The library's name, for messages.
    name: str
    #: What the library raises if a call of the driver fails.
    error: type[Exception]

    def retain(self, index: int) -> Any:
        """Return the primary context of a GPU, retained; make nothing current."""
        ...

    def release(self, context: Any) -> None:
        """Release a retained context."""
        ...

    def push(self, context: Any) -> None:
        """Make the context current in this thread."""
        ...

    def pop(self) -> None:
        """Make the context current that was so before."""
        ...

    def stream(self) -> Any:
        """Return a new stream that does not wait for the default stream."""
        ...

    def stream_handle(self, stream: Any) -> int:
        """Return the stream's number, which every other CUDA library takes."""
        ...

    def synchronize(self, stream: Any) -> None:
        """Wait until the stream's work is done."""
        ...

    def free_stream(self, stream: Any) -> None:
        """Destroy a stream."""
        ...

    def allocate(self, size: int) -> Any:
        """Return ``size`` bytes of device memory; ``int(...)`` is their address."""
        ...

    def free(self, memory: Any) -> None:
        """Free device memory."""
        ...

    def pinned(self, size: int) -> tuple[Any, int]:
        """Return ``size`` bytes of page-locked host memory, and their address."""
        ...

    def free_pinned(self, memory: Any) -> None:
        """Free page-locked memory."""
        ...

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Any) -> None:
        """Queue a copy of a contiguous, page-locked array to a device address."""
        ...

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Any) -> None:
        """Queue a copy from a device address into a contiguous, page-locked array."""
        ...


class PyCudaProvider:
    """The driver through PyCUDA. ``pycuda.autoinit`` makes a second context: never imported."""

    name = "PyCUDA"

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self.error = cast("type[Exception]", driver.Error)

    def retain(self, index: int) -> Any:
        """See Provider."""
        self._driver.init()
        return self._driver.Device(index).retain_primary_context()

    def release(self, context: Any) -> None:
        """See Provider. PyCUDA's destructor would detach it as if it were one that it made."""
        context.detach()

    def push(self, context: Any) -> None:
        """See Provider."""
        context.push()

    def pop(self) -> None:
        """See Provider."""
        self._driver.Context.pop()

    def stream(self) -> Any:
        """See Provider."""
        return self._driver.Stream(_STREAM_NON_BLOCKING)

    def stream_handle(self, stream: Any) -> int:
        """See Provider."""
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        """See Provider."""
        stream.synchronize()

    def free_stream(self, stream: Any) -> None:
        """See Provider. PyCUDA destroys a stream with its last reference, the caller's."""

    def allocate(self, size: int) -> Any:
        """See Provider."""
        return self._driver.mem_alloc(size)

    def free(self, memory: Any) -> None:
        """See Provider."""
        memory.free()

    def pinned(self, size: int) -> tuple[Any, int]:
        """See Provider."""
        array = self._driver.pagelocked_empty((size,), np.dtype(np.uint8))
        return array.base, array.ctypes.data

    def free_pinned(self, memory: Any) -> None:
        """See Provider."""
        memory.free()

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Any) -> None:
        """See Provider."""
        self._driver.memcpy_htod_async(target, source, stream)

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Any) -> None:
        """See Provider."""
        self._driver.memcpy_dtoh_async(target, source, stream)


class CudaCallError(Exception):
    """A call of cuda-bindings that returned an error, or that the driver does not have."""


class BindingsProvider:
    """The driver through cuda-bindings, whose calls return their status first."""

    name = "cuda-bindings"
    error: type[Exception] = CudaCallError

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._devices: dict[int, Any] = {}  # by the address of the retained context

    def retain(self, index: int) -> Any:
        """See Provider."""
        self._call("cuInit", 0)
        device = self._call("cuDeviceGet", index)
        context = self._call("cuDevicePrimaryCtxRetain", device)
        self._devices[int(context)] = device
        return context

    def release(self, context: Any) -> None:
        """See Provider."""
        self._call("cuDevicePrimaryCtxRelease", self._devices.pop(int(context)))

    def push(self, context: Any) -> None:
        """See Provider."""
        self._call("cuCtxPushCurrent", context)

    def pop(self) -> None:
        """See Provider."""
        self._call("cuCtxPopCurrent")

    def stream(self) -> Any:
        """See Provider."""
        return self._call("cuStreamCreate", _STREAM_NON_BLOCKING)

    def stream_handle(self, stream: Any) -> int:
        """See Provider."""
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        """See Provider."""
        self._call("cuStreamSynchronize", stream)

    def free_stream(self, stream: Any) -> None:
        """See Provider."""
        self._call("cuStreamDestroy", stream)

    def allocate(self, size: int) -> Any:
        """See Provider."""
        return self._call("cuMemAlloc", size)

    def free(self, memory: Any) -> None:
        """See Provider."""
        self._call("cuMemFree", memory)

    def pinned(self, size: int) -> tuple[Any, int]:
        """See Provider."""
        address = self._call("cuMemHostAlloc", size, 0)
        return address, int(address)

    def free_pinned(self, memory: Any) -> None:
        """See Provider."""
        self._call("cuMemFreeHost", memory)

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Any) -> None:
        """See Provider."""
        self._call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, stream)

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Any) -> None:
        """See Provider."""
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Return a call's value; raise CudaCallError with the driver's own words."""
        try:
            status, *values = getattr(self._driver, name)(*arguments)
        except RuntimeError as err:  # no driver, or one that is too old to have this function
            raise CudaCallError(f"{name} failed: {err}") from err
        if int(status) == 0:
            return values[0] if values else None
        known, text = self._driver.cuGetErrorString(status)
        reason = text.decode("utf-8", "replace") if int(known) == 0 and text else "unknown error"
        raise CudaCallError(f"{name} failed: {reason}")


def load_provider() -> Provider:
    """Import PyCUDA, or cuda-bindings if that fails. Needs a driver; makes no context.

    Raises:
        BackendMissingError: Neither imports; names what to install.
    """
    try:
        return PyCudaProvider(importlib.import_module("pycuda.driver"))
    except (ImportError, OSError) as err:
        reason = str(err)
    bindings = load_bindings()
    if bindings is None:
        raise BackendMissingError(
            "a TensorRT plan needs cuda-bindings or PyCUDA for GPU memory, and neither imports "
            f"(PyCUDA: {reason}); run: pip install 'hybrid-rt[gpu]', whose cuda-bindings needs no "
            "CUDA toolkit, or 'hybrid-rt[pycuda]', which is built with nvcc"
        )
    return BindingsProvider(bindings)


def load_bindings() -> Any | None:
    """Return the driver module of cuda-bindings, or None if it does not import."""
    for name in _BINDINGS:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):
            continue
    return None


def provider_problem() -> str | None:
    """Return why GPU memory cannot be managed here, as one line, or None if it can."""
    try:
        load_provider()
    except BackendMissingError as err:
        return str(err)
    return None
