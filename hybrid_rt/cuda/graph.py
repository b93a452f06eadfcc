"""CUDA graphs through cuda-bindings, on the streams of either provider (PyCUDA has no graphs)."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

from hybrid_rt.errors import BackendError

_lock = threading.Lock()
_recordings = 0  # under way, in all threads
_collected = True  # whether the garbage collector ran before the first of them


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

        Other threads may allocate memory and launch work meanwhile. The garbage collector waits:
        a session that it found here would free memory, which ends a recording.

        Args:
            bindings: The module from ``load_bindings``.
            stream: The stream's handle.
            work: Queues the work.

        Raises:
            BackendError: Something in the work cannot be recorded. The stream can be used again.
        """
        handle = bindings.CUstream(stream)
        mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with _no_collection():
            _check(bindings.cuStreamBeginCapture(handle, mode), "begin recording")
            try:
                work()
            except BaseException:
                bindings.cuStreamEndCapture(handle)  # ends the capture; there is no graph
                raise
            graph = _check(bindings.cuStreamEndCapture(handle), "record")
        try:
            executable = _check(bindings.cuGraphInstantiate(graph, 0), "instantiate")
        finally:
            bindings.cuGraphDestroy(graph)
        return cls(bindings, executable)

    def launch(self, stream: int) -> None:
        """Queue the recorded work on the stream."""
        bindings = self._bindings
        _check(bindings.cuGraphLaunch(self._executable, bindings.CUstream(stream)), "launch")

    def close(self) -> None:
        """Free the graph. May be called twice."""
        executable, self._executable = self._executable, None
        if executable is not None:
            self._bindings.cuGraphExecDestroy(executable)


def _check(result: tuple[Any, ...], what: str) -> Any:
    """Return the value of a cuda-bindings call, which returns its status first."""
    status = result[0]
    if int(status) != 0:
        name = getattr(status, "name", str(status))
        raise BackendError(f"cannot {what} a CUDA graph: {name}")
    return result[1] if len(result) > 1 else None


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector off while any thread is in this context."""
    global _recordings, _collected
    with _lock:
        if _recordings == 0:
            _collected = gc.isenabled()
            gc.disable()
        _recordings += 1
    try:
        yield
    finally:
        with _lock:
            _recordings -= 1
            if _recordings == 0 and _collected:
                gc.enable()
