"""A machine with a fake GPU and a fake TensorRT, put in place of the real ones for a test."""

import ctypes
import sys

from fake_cuda import FakeCuda, FakeLibcuda
from fake_tensorrt import fake_tensorrt, parse_onnx

import hybrid_rt.backends.trt_engine
import hybrid_rt.cuda
import hybrid_rt.devices
import hybrid_rt.tensorrt_library


class FakeMachine:
    """``cuda``, ``trt`` and ``libcuda`` are the fakes in place."""

    def __init__(self, monkeypatch, version, *, devices=(("Fake GPU", 8, 9),), delay=0.0):
        self.cuda = FakeCuda()
        self.trt = fake_tensorrt(version, self.cuda, parse=parse_onnx, delay=delay)
        self.libcuda = FakeLibcuda(devices)
        self.library = "tensorrt_rtx" if version == "rtx" else "tensorrt"
        real = ctypes.CDLL

        def load(name, *args, **kwargs):
            return self.libcuda if name == "libcuda.so.1" else real(name, *args, **kwargs)

        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setitem(sys.modules, "pycuda.driver", self.cuda.driver)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", self.cuda.bindings)
        modules = {"tensorrt": (), "tensorrt_rtx": ()} | {self.library: (self.library,)}
        monkeypatch.setattr(hybrid_rt.tensorrt_library, "_MODULES", modules)
        monkeypatch.setitem(sys.modules, self.library, self.trt)
        monkeypatch.setattr(hybrid_rt.cuda, "_opened", {})
        monkeypatch.setattr(hybrid_rt.backends.trt_engine, "_logs", {})
        hybrid_rt.devices.cuda_device_count.cache_clear()
