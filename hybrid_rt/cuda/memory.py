"""Device memory, page-locked host memory and streams of one GPU.

The GPU's *primary* context is used, the one that PyTorch and the CUDA runtime share: retained once
per process, and current only around each piece of work.

What is allocated here is freed once, by its ``free`` or with its last reference; at exit the driver
frees what is left, since a daemon thread may still use it. A free raises no error. If the GPU
cannot be used any more (after ``fork``, after a reset of the device, after an illegal access), the
object is kept for good, since the driver has dropped its memory already and PyCUDA's destructors
would end the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hybrid_rt.cuda.driver import CudaDevice
from hybrid_rt.cuda.providers import Provider, load_provider
from hybrid_rt.errors import BackendError, DeviceError

_log = logging.getLogger("hybrid_rt")
_lock = threading.Lock()
_opened: dict[int, Gpu] = {}


class Gpu:
    """One GPU's primary context. Get it from ``open_gpu``; it lives as long as the process.

    Releasing the context would pull it from under whoever else uses it in this process, so it is
    kept until exit, as PyTorch keeps it.
    """

    def __init__(self, device: CudaDevice, provider: Provider) -> None:
        self.device = device
        self.provider = provider
        self._process = os.getpid()
        self._context = provider.retain(device.index)
        weakref.finalize(self, _release, provider, self._context, self._process)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the context current in this thread; CUDA's errors become BackendError."""
        if os.getpid() != self._process:
            raise BackendError(
                f"CUDA on {self.device} was opened before this process was forked and cannot be "
                "used here; open the model in the child, and start processes with 'spawn'"
            )
        with self._errors():
            self.provider.push(self._context)
        try:
            with self._errors():
                yield
        finally:
            with self._errors():
                self.provider.pop()

    def stream(self) -> Stream:
        """Return a new stream, which does not wait for the default stream."""
        return Stream(self, self.provider.stream())

    def allocate(self, size: int) -> DeviceMemory:
        """Return ``size`` bytes of device memory."""
        return DeviceMemory(self, self.provider.allocate(max(size, 1)))

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return page-locked host memory as an array, freed with the last view of it."""
        size = max(math.prod(shape) * np.dtype(dtype).itemsize, 1)
        memory, address = self.provider.pinned(size)
        buffer = (ctypes.c_uint8 * size).from_address(address)  # the base of the array's views
        _free_with(buffer, self, self.provider.free_pinned, memory)
        return np.ndarray(shape, dtype, buffer=memoryview(buffer))

    def copy_to_device(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        """Queue a copy of a page-locked, contiguous array to the device."""
        self.provider.copy_to_device(target, source, stream.object)

    def copy_to_host(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        """Queue a copy from the device into a page-locked, contiguous array."""
        self.provider.copy_to_host(target, source, stream.object)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self.provider.error as err:
            text = " ".join(str(err).split())
            advice = ""
            if "out of memory" in text:
                advice = (
                    "; another process may hold the memory (nvidia-smi shows it): free it, set "
                    "memory_limit, or build the engine with a smaller --max-batch"
                )
            raise BackendError(f"CUDA on {self.device}: {text}{advice}") from err


class Stream:
    """A queue of work on a GPU. ``handle`` is its number, which other CUDA libraries take."""

    def __init__(self, gpu: Gpu, owned: Any) -> None:
        self._provider = gpu.provider
        #: The provider's own object.
        self.object = owned
        self.handle = gpu.provider.stream_handle(owned)
        self._free = _free_with(self, gpu, gpu.provider.free_stream, owned)

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        self._provider.synchronize(self.object)

    def free(self) -> None:
        """Destroy the stream. May be called twice, and from any thread."""
        self.object = None
        self._free()


class DeviceMemory:
    """Memory on a GPU; ``int(...)`` is its address."""

    def __init__(self, gpu: Gpu, owned: Any) -> None:
        self._address = int(owned)
        self._free = _free_with(self, gpu, gpu.provider.free, owned)

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        """Free the memory. May be called twice, and from any thread."""
        self._free()


def open_gpu(device: CudaDevice) -> Gpu:
    """Return the Gpu of a device: the same object each time.

    Raises:
        BackendMissingError: Neither PyCUDA nor cuda-bindings imports.
        DeviceError: The context cannot be retained.
    """
    with _lock:
        if device.index not in _opened:
            provider = load_provider()
            try:
                _opened[device.index] = Gpu(device, provider)
            except provider.error as err:
                raise DeviceError(
                    f"cannot use {device}: {err}; nvidia-smi shows whether another process has it "
                    "for itself"
                ) from err
        return _opened[device.index]


def abandon(thing: object) -> None:
    """Keep an object for as long as the process lives, so that its destructor never runs."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _free_with(
    owner: Any, gpu: Gpu, free: Callable[[Any], None], owned: Any
) -> weakref.finalize[[Gpu, Callable[[Any], None], Any], Any]:
    """Free ``owned`` when its owner is gone, or when the result is called."""
    finalizer = weakref.finalize(owner, _discard, gpu, free, owned)
    finalizer.atexit = False
    return finalizer


def _discard(gpu: Gpu, free: Callable[[Any], None], owned: Any) -> None:
    """Free something of a GPU, or keep it for good if the GPU cannot be used any more."""
    try:
        with gpu.active():
            free(owned)
    except BackendError as err:
        abandon(owned)
        _log.debug("not freed: %s", err)


def _release(provider: Provider, context: Any, process: int) -> None:
    """Release a primary context at exit, after the sessions on it."""
    if os.getpid() != process:
        abandon(context)
        return
    try:
        provider.release(context)
    except provider.error as err:
        abandon(context)
        _log.debug("not released: %s", err)
