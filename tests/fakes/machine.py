"""A machine with a fake GPU and a fake TensorRT, put in place of the real ones for a test."""

import ctypes
import sys

import hybrid_rt.backends.gpu_support
import hybrid_rt.cuda.memory
import hybrid_rt.tensorrt.engine
import hybrid_rt.tensorrt.library
from fakes.cuda import FakeCuda, FakeLibcuda
from fakes.tensorrt import fake_tensorrt, parse_onnx

#: The libraries for GPU memory; see hybrid_rt.cuda.providers.
PROVIDERS = ["PyCUDA", "cuda-bindings"]


class FakeMachine:
    """The fakes ``cuda``, ``trt`` and ``libcuda`` in place; only ``provider`` can be imported."""

    def __init__(
        self, monkeypatch, version, *, devices=(("Fake GPU", 8, 9),), delay=0.0, provider="PyCUDA"
    ):
        self.cuda = FakeCuda()
        self.trt = fake_tensorrt(version, self.cuda, parse=parse_onnx, delay=delay)
        self.libcuda = FakeLibcuda(devices)
        self.library = "tensorrt_rtx" if version == "rtx" else "tensorrt"
        real = ctypes.CDLL

        def load(name, *args, **kwargs):
            return self.libcuda if name == "libcuda.so.1" else real(name, *args, **kwargs)

        monkeypatch.setattr(ctypes, "CDLL", load)
        pycuda = self.cuda.driver if provider == "PyCUDA" else None  # None does not import
        monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", self.cuda.bindings)
        modules = {"tensorrt": (), "tensorrt_rtx": ()} | {self.library: (self.library,)}
        monkeypatch.setattr(hybrid_rt.tensorrt.library, "_MODULES", modules)
        monkeypatch.setitem(sys.modules, self.library, self.trt)
        monkeypatch.setattr(hybrid_rt.cuda.memory, "_opened", {})
        monkeypatch.setattr(hybrid_rt.tensorrt.engine, "_logs", {})
        monkeypatch.setattr(hybrid_rt.backends.gpu_support, "_tried", {})
        monkeypatch.setattr(hybrid_rt.backends.gpu_support, "_warned", set())
