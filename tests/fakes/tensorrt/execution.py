"""Execution contexts, and the runtime configuration of TensorRT for RTX."""

import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from .engine import OUTPUTS, expected


@dataclass
class ContextRecord:
    """One execution context: its configuration, profile and auxiliary streams.

    ``cached_kernels`` are the bytes its runtime cache was loaded from; None without them.
    """

    config: Any = None
    profile: int | None = None
    aux_streams: list | None = None
    cached_kernels: bytes | None = None


class IRuntimeCache:
    def __init__(self):
        self._loaded = None

    def deserialize(self, data):
        self._loaded = bytes(data)

    def serialize(self):
        return b"kernels"


class IRuntimeConfig:
    def __init__(self):
        self._cache = None

    def create_runtime_cache(self):
        return self._trt.IRuntimeCache()

    def set_runtime_cache(self, cache):
        self._cache = cache
        return True


class IExecutionContext:
    def __init__(self, engine, config):
        self._owner, self._facts = engine, engine._facts
        self._addresses, self._batch = {}, None
        first = not engine._record.contexts
        self._record = ContextRecord(config, profile=0 if first else None)
        if config is not None and config._cache is not None:
            self._record.cached_kernels = config._cache._loaded
        self._settled = False
        self._changes = 0
        self._users = threading.Semaphore(1)

    def set_input_shape(self, name, shape):
        profile = self._record.profile
        assert profile is not None or "batch" in self._facts, "no profile chosen"
        low, high = self._facts["profiles"][profile or 0]
        size = self._facts["size"]
        assert name == "images"
        if not low <= shape[0] <= high or tuple(shape[1:]) != (size, size, 3):
            return False
        self._settled = self._settled and self._batch == shape[0]
        self._changes += self._batch != shape[0]
        self._batch = shape[0]
        return True

    def set_tensor_address(self, name, memory):
        assert isinstance(memory, int)
        self._addresses[name] = memory
        return True

    def set_optimization_profile_async(self, profile_index, stream_handle):
        assert stream_handle in self._trt.cuda.live["streams"]
        self._record.profile = profile_index
        return profile_index < len(self._facts["profiles"])

    def set_aux_streams(self, aux_streams):
        assert all(handle in self._trt.cuda.live["streams"] for handle in aux_streams)
        self._record.aux_streams = list(aux_streams)

    def execute_async_v3(self, stream_handle):
        cuda, delay = self._trt.cuda, self._trt.delay
        cuda.need_context()
        assert stream_handle not in (self._record.aux_streams or [])
        recording = cuda.live["streams"][stream_handle].recorded is not None
        assert self._settled or not recording, "recorded before a run with that shape"
        self._settled = True
        if not self._users.acquire(blocking=False):
            raise AssertionError("two threads in one execution context")
        try:
            changes = self._changes
            batch, size = self._batch, self._facts["size"]
            row = size * size * 3
            images = cuda.array_at(self._addresses["images"], batch * row)
            targets = {
                n: cuda.array_at(self._addresses[n], batch * int(np.prod(s)) * 4)
                for n, s in OUTPUTS.items()
            }

            def work():
                assert self._changes == changes, "a graph outlived a change of its context"
                time.sleep(delay)
                values = expected(images.reshape(batch, size, size, 3))
                for name, target in targets.items():
                    target[:] = values[name].reshape(-1).view(np.uint8)

            cuda.enqueue(stream_handle, work)
        finally:
            self._users.release()
        return True
