"""The pool of an engine's execution contexts, from which calling threads borrow."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from hybrid_rt.cuda import Gpu, abandon
from hybrid_rt.errors import BackendError, HybridError
from hybrid_rt.tensorrt.context import ExecutionContext
from hybrid_rt.tensorrt.engine import OptimizationProfile

#: Seconds that ``close`` waits for calls under way, at exit too.
_LONGEST_WAIT = 30.0


class ContextPool:
    """Contexts for each optimization profile, made on demand, at most ``limit`` of each."""

    def __init__(
        self,
        gpu: Gpu,
        make: Callable[[OptimizationProfile], ExecutionContext],
        release: Callable[[], None],
        limit: int,
    ) -> None:
        self._gpu = gpu
        self._make = make
        self._release = release  # called once, when the last context is gone
        self._limit = limit
        self._changed = threading.Condition()
        self._idle: dict[int, list[ExecutionContext]] = defaultdict(list)
        self._made: Counter[int] = Counter()
        self._closed = False
        self._inside = 0  # callers between the two ends of ``borrow``

    @contextlib.contextmanager
    def borrow(self, profile: OptimizationProfile, size: int = 0) -> Iterator[ExecutionContext]:
        """Lend a context to this thread, with the GPU active. Waits if all are in use.

        Of several idle ones it lends one whose last batch had ``size`` images, since the graph of
        that size is still valid.
        """
        with self._changed:
            self._inside += 1
        try:
            context = self._take(profile, size)
            usable = False
            try:
                with self._gpu.active():
                    yield context
                    usable = True
            finally:
                self._put_back(profile, context, usable)
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Free the idle contexts and wait for those in use. May be called twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            idle = [context for contexts in self._idle.values() for context in contexts]
            for index, contexts in self._idle.items():
                self._made[index] -= len(contexts)
            self._idle.clear()
            last = self._made.total() == 0
            self._changed.notify_all()
        if self._free(idle, last):
            with self._changed:
                self._changed.wait_for(lambda: self._inside == 0, _LONGEST_WAIT)

    def _take(self, profile: OptimizationProfile, size: int) -> ExecutionContext:
        index = profile.index
        with self._changed:
            while True:
                if self._closed:
                    raise BackendError("this session is closed; open the model again")
                idle = self._idle[index]
                if idle:
                    alike = (i for i, context in enumerate(idle) if context.batch == size)
                    return idle.pop(next(alike, -1))
                if self._made[index] < self._limit:
                    self._made[index] += 1
                    break
                self._changed.wait()
        try:
            with self._gpu.active():
                return self._make(profile)
        except BaseException as err:
            with self._changed:
                self._made[index] -= 1
                others = self._made[index]
                self._limit = max(others, 1)
                last = self._closed and self._made.total() == 0
                self._changed.notify_all()
            if last:
                with self._gpu.active():
                    self._release()
            if others == 0 or not isinstance(err, BackendError):
                raise
        # GPU memory is full, or TensorRT 8.6 allows one context per profile: wait for an existing
        # one.
        return self._take(profile, size)

    def _put_back(
        self, profile: OptimizationProfile, context: ExecutionContext, usable: bool
    ) -> None:
        with self._changed:
            keep = usable and not self._closed
            if keep:
                self._idle[profile.index].append(context)
            else:
                self._made[profile.index] -= 1
            last = self._closed and self._made.total() == 0
            self._changed.notify()
        if keep:
            return
        self._free([context], last)

    def _free(self, contexts: list[ExecutionContext], last: bool) -> bool:
        """Free contexts and, with the last one, the engine; return whether the GPU is usable."""
        try:
            with self._gpu.active():
                for context in contexts:
                    context.close()
                if last:
                    self._release()
        except HybridError:  # TensorRT must not free on it either
            abandon((contexts, self._release))
            return False
        return True
