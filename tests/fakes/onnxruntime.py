"""onnxruntime-gpu without a GPU: the real onnxruntime, with other providers in its list.

``cuda_works`` decides whether a session that asks for CUDA reports it, or falls back to the CPU as
the real one does if its libraries do not load. Sessions run on the CPU in any case.
"""

import sys
import types

import onnxruntime as real

from hybrid_rt.backends import gpu_support


class FakeOnnxRuntime(types.ModuleType):
    """The patched module; ``calls`` lists ``preload`` and each session's providers in order."""

    def __init__(self, monkeypatch, *, providers=("CUDA", "CPU"), cuda_works=True, preload=True):
        super().__init__("onnxruntime")
        self.__spec__, self.__version__ = real.__spec__, "1.31.1"
        self.__file__ = real.__file__
        self.providers = [f"{name}ExecutionProvider" for name in providers]
        self.cuda_works = cuda_works
        self.calls = calls = []
        self.SessionOptions = real.SessionOptions
        if preload:
            self.preload_dlls = self._preload
        fake = self

        class InferenceSession:
            def __init__(self, path_or_bytes, sess_options=None, providers=None):
                names = [p if isinstance(p, str) else p[0] for p in providers]
                calls.append(names)
                cuda = fake.cuda_works and names[0] == "CUDAExecutionProvider"
                self._providers = ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"]
                cpu = ["CPUExecutionProvider"]
                self._session = real.InferenceSession(path_or_bytes, sess_options, providers=cpu)

            def get_providers(self):
                return self._providers

            def __getattr__(self, name):
                return getattr(self._session, name)

        self.InferenceSession = InferenceSession
        monkeypatch.setitem(sys.modules, "onnxruntime", self)
        monkeypatch.setattr(gpu_support, "_tried", {})
        monkeypatch.setattr(gpu_support, "_warned", set())

    def get_available_providers(self):
        return self.providers

    def _preload(self):
        self.calls.append("preload")
        print("Failed to load libcudnn.so.9")
