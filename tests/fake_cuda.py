"""CUDA on host memory: stand-ins for ``pycuda.driver`` and ``cuda.bindings.driver``.

Everything happens at once, in the caller's thread, except what a stream records for a graph. What
a GPU punishes later is refused at once: work without a current context, freed or foreign memory,
sizes that do not fit, waiting on a stream that records.
"""

import ctypes
import enum
import itertools
import threading
import types

import numpy as np


class FakeCudaError(Exception):
    """What pycuda.driver.Error is."""


class FakeCuda:
    """One fake GPU. ``driver`` and ``bindings`` go in place of the modules; ``live`` counts."""

    def __init__(self, memory_bytes=1 << 30):
        self.memory_bytes = memory_bytes
        self.live = {"device": {}, "pinned": {}, "streams": {}, "graphs": {}}
        self.launches = 0
        self.retained = 0
        self.capture_fails = False
        self._numbers = itertools.count(1000)
        self._lock = threading.Lock()
        self._stacks = threading.local()
        self.driver = self._make_driver()
        self.bindings = self._make_bindings()

    @property
    def stack(self):
        """Contexts pushed in this thread."""
        if not hasattr(self._stacks, "items"):
            self._stacks.items = []
        return self._stacks.items

    def counts(self):
        """How many objects of each kind are alive."""
        return {kind: len(items) for kind, items in self.live.items()}

    def array_at(self, address, size):
        """Bytes of device memory from an address inside an allocation."""
        for allocation in list(self.live["device"].values()):
            offset = address - allocation.address
            if offset >= 0 and offset + size <= allocation.size:
                return allocation.memory[offset : offset + size]
        raise FakeCudaError(f"invalid device pointer {address:#x} + {size}")

    def enqueue(self, handle, work):
        """Run work now, or record it where the stream records."""
        self.need_context()
        stream = self.live["streams"][handle]
        if stream.recorded is not None:
            stream.recorded.append(work)
        else:
            work()

    def need_context(self):
        if not self.stack:
            raise FakeCudaError("invalid device context")

    def _register(self, kind, value):
        with self._lock:
            number = next(self._numbers)
            self.live[kind][number] = value
        return number

    def _make_driver(cuda):  # noqa: N805
        class Context:
            def __init__(self):
                self.detached = False

            def push(self):
                if self.detached:
                    raise FakeCudaError("invalid device context")
                cuda.stack.append(self)

            @staticmethod
            def pop():
                cuda.need_context()
                cuda.stack.pop()

            def detach(self):
                self.detached = True
                cuda.retained -= 1

        class Device:
            def __init__(self, index):
                if index != 0:
                    raise FakeCudaError("invalid device ordinal")

            def retain_primary_context(self):
                cuda.retained += 1
                return Context()

        class Stream:
            def __init__(self, flags=0):
                cuda.need_context()
                assert flags == 1, "a stream that waits for the default stream"
                # Not itself: a PyCUDA stream is destroyed with its last reference.
                self._inner = types.SimpleNamespace(recorded=None)
                self.handle = cuda._register("streams", self._inner)

            def synchronize(self):
                cuda.need_context()
                if self._inner.recorded is not None:
                    raise FakeCudaError("operation not permitted when stream is capturing")

            def __del__(self):
                cuda.live["streams"].pop(self.handle, None)

        class DeviceAllocation:
            def __init__(self, size):
                cuda.need_context()
                used = sum(a.size for a in list(cuda.live["device"].values()))
                if used + size > cuda.memory_bytes:
                    raise FakeCudaError("cuMemAlloc failed: out of memory")
                self.size = size
                self.memory = np.zeros(size, np.uint8)
                self.address = self.memory.ctypes.data
                self._number = cuda._register("device", self)

            def __int__(self):
                return self.address

            def free(self):
                cuda.need_context()
                del cuda.live["device"][self._number]
                self.memory = None

        class PagelockedHostAllocation(bytearray):
            def free(self):
                cuda.need_context()
                del cuda.live["pinned"][self.number]

        def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
            cuda.need_context()
            dtype = np.dtype(dtype)
            memory = PagelockedHostAllocation(int(np.prod(shape)) * dtype.itemsize)
            memory.number = cuda._register("pinned", memory)
            return np.ndarray(shape, dtype, buffer=memory)

        def host_view(array):
            assert array.flags.c_contiguous
            owner = array
            while isinstance(owner, np.ndarray):
                owner = owner.base
            assert isinstance(owner, PagelockedHostAllocation), "not pinned"
            assert owner.number in cuda.live["pinned"], "pinned memory that was freed"
            return array.reshape(-1).view(np.uint8)

        def memcpy_htod_async(dest, src, stream=None):
            data = host_view(src)
            target = cuda.array_at(dest, data.nbytes)
            cuda.enqueue(stream.handle, lambda: np.copyto(target, data))

        def memcpy_dtoh_async(dest, src, stream=None):
            data = host_view(dest)
            source = cuda.array_at(src, data.nbytes)
            cuda.enqueue(stream.handle, lambda: np.copyto(data, source))

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
            CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901

        class CUstreamCaptureMode(enum.IntEnum):
            CU_STREAM_CAPTURE_MODE_GLOBAL = 0
            CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

        class CUstream(int):
            pass

        ok = CUresult.CUDA_SUCCESS

        def begin(stream, mode):
            cuda.need_context()
            assert mode == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            cuda.live["streams"][int(stream)].recorded = []
            return (ok,)

        def end(stream):
            inner = cuda.live["streams"][int(stream)]
            work, inner.recorded = inner.recorded, None
            if cuda.capture_fails:
                return (CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None)
            return ok, cuda._register("graphs", work)

        def instantiate(graph, flags):
            return ok, cuda._register("graphs", list(cuda.live["graphs"][graph]))

        def destroy(graph):
            del cuda.live["graphs"][graph]
            return (ok,)

        def launch(executable, stream):
            cuda.need_context()
            cuda.launches += 1
            for work in cuda.live["graphs"][executable]:
                cuda.enqueue(int(stream), work)
            return (ok,)

        return types.SimpleNamespace(
            CUresult=CUresult,
            CUstreamCaptureMode=CUstreamCaptureMode,
            CUstream=CUstream,
            cuStreamBeginCapture=begin,
            cuStreamEndCapture=end,
            cuGraphInstantiate=instantiate,
            cuGraphDestroy=destroy,
            cuGraphExecDestroy=destroy,
            cuGraphLaunch=launch,
        )


class FakeLibcuda:
    """Stands in for ``ctypes.CDLL("libcuda.so.1")``; ``devices`` are (name, major, minor)."""

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
