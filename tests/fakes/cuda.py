"""CUDA on host memory: stand-ins for ``pycuda.driver`` and ``cuda.bindings.driver``.

All work runs at once in the caller's thread, except work that a stream records for a graph. Errors
that a GPU reports later raise at once: work without a current context, memory that is freed or of
another context, sizes that do not fit, waiting on a stream that records, allocating or freeing
while recording.
"""

import ctypes
import enum
import functools
import itertools
import threading
import types

import numpy as np

#: The handle of the fake GPU's primary context.
_CONTEXT = 77


class FakeCudaError(Exception):
    """The fake of pycuda.driver.Error; ``status`` is the name of the CUresult."""

    def __init__(self, text, status="CUDA_ERROR_INVALID_VALUE"):
        super().__init__(text)
        self.status = status


class FakeCuda:
    """One fake GPU. ``driver`` and ``bindings`` replace the modules; ``live`` holds all objects."""

    def __init__(self, memory_bytes=1 << 30):
        self.memory_bytes = memory_bytes
        self.live = {"device": {}, "pinned": {}, "streams": {}, "graphs": {}}
        self.launches = 0
        self.retained = 0
        self.capture_fails = False
        self.was_reset = False  # by another library: the primary context is gone
        self._contexts = set()
        self._numbers = itertools.count(1000)
        self._lock = threading.Lock()
        self._stacks = threading.local()
        self.driver = self._make_driver()
        self.bindings = self._make_bindings()

    @property
    def stack(self):
        """Return the contexts pushed in this thread."""
        if not hasattr(self._stacks, "items"):
            self._stacks.items = []
        return self._stacks.items

    def counts(self):
        """Return the number of live objects of each kind."""
        return {kind: len(items) for kind, items in self.live.items()}

    def array_at(self, address, size):
        """Return the bytes of device memory from an address inside an allocation."""
        return self._view("device", address, size)

    def enqueue(self, handle, work):
        """Run work now, or record it if the stream records."""
        self.need_context()
        stream = self.live["streams"][handle]
        if stream.recorded is not None:
            stream.recorded.append(work)
        else:
            work()

    def need_context(self):
        if not self.stack:
            raise FakeCudaError("invalid device context", "CUDA_ERROR_INVALID_CONTEXT")

    def push(self, context):
        if self.was_reset or context not in self._contexts:
            raise FakeCudaError("context is destroyed", "CUDA_ERROR_CONTEXT_IS_DESTROYED")
        self.stack.append(context)

    def pop(self):
        self.need_context()
        return self.stack.pop()

    def retain(self, index):
        if index != 0:
            raise FakeCudaError("invalid device ordinal", "CUDA_ERROR_INVALID_DEVICE")
        self.retained += 1
        self._contexts.add(_CONTEXT)
        return _CONTEXT

    def release(self):
        self.retained -= 1
        if not self.retained:
            self._contexts.clear()

    def new_stream(self, flags):
        self.need_context()
        assert flags == 1, "a stream that waits for the default stream"
        return self._register("streams", types.SimpleNamespace(recorded=None, spoiled=False))

    def synchronize(self, handle):
        self.need_context()
        if self.live["streams"][handle].recorded is not None:
            raise FakeCudaError("operation not permitted when stream is capturing")

    def take(self, kind, size):
        """Allocate, and return the address."""
        self._outside_of_recordings()
        if kind == "device":
            used = sum(len(memory) for memory in list(self.live["device"].values()))
            if used + size > self.memory_bytes:
                raise FakeCudaError("cuMemAlloc failed: out of memory", "CUDA_ERROR_OUT_OF_MEMORY")
        memory = np.zeros(size, np.uint8)
        with self._lock:
            self.live[kind][memory.ctypes.data] = memory
        return memory.ctypes.data

    def drop(self, kind, address):
        """Free an address that ``take`` returned."""
        self._outside_of_recordings()
        if address not in self.live[kind]:
            raise FakeCudaError("invalid argument")
        del self.live[kind][address]

    def copy(self, target, source, size, stream, kinds):
        views = [self._view(k, a, size) for k, a in zip(kinds, (target, source), strict=True)]
        self.enqueue(stream, lambda: np.copyto(*views))

    def _view(self, kind, address, size):
        for start, memory in list(self.live[kind].items()):
            if start <= address and address + size <= start + len(memory):
                return memory[address - start : address - start + size]
        raise FakeCudaError(f"invalid {kind} pointer {address:#x} + {size}")

    def _outside_of_recordings(self):
        self.need_context()
        for stream in list(self.live["streams"].values()):
            if stream.recorded is not None and stream.thread == threading.get_ident():
                stream.spoiled = True
                raise FakeCudaError("operation not permitted when stream is capturing")

    def _register(self, kind, value):
        with self._lock:
            number = next(self._numbers)
            self.live[kind][number] = value
        return number

    def _make_driver(cuda):  # noqa: N805
        class Context:
            push = staticmethod(lambda: cuda.push(_CONTEXT))
            pop = staticmethod(cuda.pop)
            detach = staticmethod(cuda.release)

        class Device:
            def __init__(self, index):
                self._index = index

            def retain_primary_context(self):
                cuda.retain(self._index)
                return Context()

        class Stream:
            def __init__(self, flags=0):
                self.handle = cuda.new_stream(flags)

            def synchronize(self):
                cuda.synchronize(self.handle)

            def __del__(self):  # a PyCUDA stream is destroyed with its last reference
                cuda.live["streams"].pop(self.handle, None)

        class DeviceAllocation:
            def __init__(self, size):
                self.address = cuda.take("device", size)

            def __int__(self):
                return self.address

            def free(self):
                cuda.drop("device", self.address)

        class PagelockedHostAllocation:
            def __init__(self, size):
                self.address = cuda.take("pinned", size)
                memory = cuda.live["pinned"][self.address]
                self.__array_interface__ = memory.__array_interface__

            def free(self):
                cuda.drop("pinned", self.address)

        def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
            dtype = np.dtype(dtype)
            memory = PagelockedHostAllocation(int(np.prod(shape)) * dtype.itemsize)
            array = np.asarray(memory)
            assert array.base is memory
            return array if (shape, dtype) == (array.shape, array.dtype) else None

        def memcpy_htod_async(dest, src, stream=None):
            assert src.flags.c_contiguous
            kinds = ("device", "pinned")
            cuda.copy(dest, src.ctypes.data, src.nbytes, stream.handle, kinds)

        def memcpy_dtoh_async(dest, src, stream=None):
            assert dest.flags.c_contiguous
            kinds = ("pinned", "device")
            cuda.copy(dest.ctypes.data, src, dest.nbytes, stream.handle, kinds)

        return types.SimpleNamespace(
            Error=FakeCudaError,
            init=lambda flags=0: None,
            Device=Device,
            Context=Context,
            Stream=Stream,
            DeviceAllocation=DeviceAllocation,
            PagelockedHostAllocation=PagelockedHostAllocation,
            mem_alloc=DeviceAllocation,
            pagelocked_empty=pagelocked_empty,
            memcpy_htod_async=memcpy_htod_async,
            memcpy_dtoh_async=memcpy_dtoh_async,
        )

    def _make_bindings(cuda):  # noqa: N805
        class CUresult(enum.IntEnum):
            CUDA_SUCCESS = 0
            CUDA_ERROR_INVALID_VALUE = 1
            CUDA_ERROR_OUT_OF_MEMORY = 2
            CUDA_ERROR_INVALID_DEVICE = 101
            CUDA_ERROR_INVALID_CONTEXT = 201
            CUDA_ERROR_CONTEXT_IS_DESTROYED = 709
            CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901

        class CUstreamCaptureMode(enum.IntEnum):
            CU_STREAM_CAPTURE_MODE_GLOBAL = 0
            CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

        class CUstream(int):
            pass

        ok = CUresult.CUDA_SUCCESS
        texts = {}

        def call(function):
            """Return the status first, then the value, as cuda-bindings' calls do."""

            @functools.wraps(function)
            def wrapped(*arguments):
                try:
                    value = function(*arguments)
                except FakeCudaError as err:
                    status = CUresult[err.status]
                    texts[status] = str(err).encode()
                    return status, None
                return (ok,) if value is None else (ok, value)

            return wrapped

        @call
        def cuInit(flags):  # noqa: N802
            assert flags == 0

        @call
        def cuDeviceGet(ordinal):  # noqa: N802
            return ordinal

        @call
        def cuDevicePrimaryCtxRetain(dev):  # noqa: N802
            return cuda.retain(dev)

        @call
        def cuDevicePrimaryCtxRelease(dev):  # noqa: N802
            cuda.release()

        @call
        def cuCtxPushCurrent(ctx):  # noqa: N802
            cuda.push(ctx)

        @call
        def cuCtxPopCurrent():  # noqa: N802
            return cuda.pop()

        @call
        def cuStreamCreate(flags):  # noqa: N802
            return CUstream(cuda.new_stream(flags))

        @call
        def cuStreamSynchronize(stream):  # noqa: N802
            cuda.synchronize(int(stream))

        @call
        def cuStreamDestroy(stream):  # noqa: N802
            cuda.need_context()
            del cuda.live["streams"][int(stream)]

        @call
        def cuMemAlloc(size):  # noqa: N802
            return cuda.take("device", size)

        @call
        def cuMemFree(memory):  # noqa: N802
            cuda.drop("device", memory)

        @call
        def cuMemHostAlloc(size, flags):  # noqa: N802
            return cuda.take("pinned", size)

        @call
        def cuMemFreeHost(memory):  # noqa: N802
            cuda.drop("pinned", memory)

        @call
        def cuMemcpyHtoDAsync(target, source, size, stream):  # noqa: N802
            cuda.copy(target, source, size, int(stream), ("device", "pinned"))

        @call
        def cuMemcpyDtoHAsync(target, source, size, stream):  # noqa: N802
            cuda.copy(target, source, size, int(stream), ("pinned", "device"))

        def cuGetErrorString(status):  # noqa: N802
            return ok, texts[status]

        @call
        def cuStreamBeginCapture(stream, mode):  # noqa: N802
            cuda.need_context()
            assert mode == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            inner = cuda.live["streams"][int(stream)]
            inner.recorded, inner.spoiled, inner.thread = [], False, threading.get_ident()

        @call
        def cuStreamEndCapture(stream):  # noqa: N802
            inner = cuda.live["streams"][int(stream)]
            work, inner.recorded = inner.recorded, None
            if cuda.capture_fails or inner.spoiled:
                raise FakeCudaError("invalidated", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
            return cuda._register("graphs", work)

        @call
        def cuGraphInstantiate(graph, flags):  # noqa: N802
            return cuda._register("graphs", list(cuda.live["graphs"][graph]))

        @call
        def cuGraphDestroy(graph):  # noqa: N802
            del cuda.live["graphs"][graph]

        @call
        def cuGraphExecDestroy(graph):  # noqa: N802
            del cuda.live["graphs"][graph]

        @call
        def cuGraphLaunch(executable, stream):  # noqa: N802
            cuda.need_context()
            cuda.launches += 1
            for work in cuda.live["graphs"][executable]:
                cuda.enqueue(int(stream), work)

        names = {n: v for n, v in locals().items() if n.startswith(("cu", "CU")) and n != "cuda"}
        return types.SimpleNamespace(**names)


class FakeLibcuda:
    """The fake of ``ctypes.CDLL("libcuda.so.1")``; ``devices`` are (name, major, minor)."""

    def __init__(self, devices=(("Fake GPU", 8, 9),), init_status=0):
        self.devices = devices
        self.init_status = init_status

    def cuInit(self, flags):  # noqa: N802
        return self.init_status

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = len(self.devices)
        return 0

    def cuDeviceGet(self, handle, index):  # noqa: N802
        handle._obj.value = index
        return 0

    def cuDeviceGetName(self, name, size, handle):  # noqa: N802
        name.value = self.devices[handle.value][0].encode()
        return 0

    def cuDeviceGetAttribute(self, value, attribute, handle):  # noqa: N802
        value._obj.value = self.devices[handle.value][{75: 1, 76: 2}[attribute]]
        return 0

    def cuDeviceTotalMem_v2(self, size, handle):  # noqa: N802
        size._obj.value = 16 << 30
        return 0

    def cuGetErrorString(self, status, text):  # noqa: N802
        text._obj.value = ctypes.c_char_p(b"initialization error").value
        return 0
