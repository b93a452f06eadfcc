"""An execution context of a TensorRT engine, with its own stream, buffers and CUDA graph.

Threads may share an engine, but not an execution context. A context keeps one optimization
profile, so that its memory never moves and its recorded graph stays valid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.cuda import CudaGraph, DeviceMemory, Gpu, Stream
from hybrid_rt.errors import BackendError

#: The runs of one batch size before its graph is recorded: the first number, and the largest. A
#: graph that was replayed less often than that doubles the number, since recording it did not pay.
_FIRST_PATIENCE, _MOST_PATIENCE = 2, 64


@dataclass(frozen=True)
class Tensor:
    """An input or output of the engine: ``row`` is its shape without the batch."""

    name: str
    row: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one image."""
        return math.prod(self.row) * self.dtype.itemsize


class ExecutionContext:
    """One execution context for batches up to ``largest``; one thread at a time.

    Make, use and close it with the Gpu active.

    Args:
        profile: The optimization profile; None for a plan of fixed batch.
        bindings: The module of cuda-bindings; None for no graphs.
        explain: Returns the end of TensorRT's log, for messages.
    """

    def __init__(
        self,
        gpu: Gpu,
        context: Any,
        *,
        profile: int | None,
        largest: int,
        images: Tensor,
        outputs: tuple[Tensor, ...],
        aux_streams: int,
        bindings: Any | None,
        explain: Callable[[], str],
    ) -> None:
        self._gpu = gpu
        self._context: Any = context
        self._images = images
        self._outputs = outputs
        self._bindings = bindings
        self._explain = explain
        self._graph: CudaGraph | None = None
        self._runs = self._replays = 0  # of the present batch size, without and with its graph
        self._patience = _FIRST_PATIENCE
        #: The batch size that the context is set to.
        self.batch = 0
        #: Why graphs are not used any more; None while they are.
        self.graph_problem: str | None = None
        self._host: dict[str, NDArray[Any]] = {}
        self._device: dict[str, DeviceMemory] = {}
        self._aux: list[Stream] = []
        self._stream: Stream = gpu.stream()
        try:
            self._set_up(profile, largest, aux_streams)
        except BaseException:
            self.close()
            raise

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs by name: float32 copies."""
        batch = len(images)
        self._host[self._images.name][:batch] = images
        if batch != self.batch:
            self._set_batch(batch)
        if self._graph is None:
            self._queue(batch)
            self._stream.synchronize()
            self._runs += 1
            self._record(batch)
        else:
            self._graph.launch(self._stream.handle)
            self._stream.synchronize()
            self._replays += 1
        return {
            t.name: np.array(self._host[t.name][:batch], dtype=np.float32) for t in self._outputs
        }

    def close(self) -> None:
        """Free everything, in the order that CUDA requires."""
        self._drop_graph()
        self._context = None  # TensorRT frees its own memory with the last reference
        for memory in self._device.values():
            memory.free()
        self._device, self._host = {}, {}  # page-locked arrays are freed with their last view
        for stream in (*self._aux, self._stream):
            stream.free()

    def _set_up(self, profile: int | None, largest: int, aux_streams: int) -> None:
        gpu, context = self._gpu, self._context
        if profile is not None:  # only an engine's first context has one by itself
            self._require(
                context.set_optimization_profile_async(profile, self._stream.handle),
                f"choose the optimization profile {profile}",
            )
            self._stream.synchronize()
        if aux_streams:
            self._aux = [gpu.stream() for _ in range(aux_streams)]
            context.set_aux_streams([stream.handle for stream in self._aux])
        for tensor in (self._images, *self._outputs):
            self._host[tensor.name] = gpu.pinned((largest, *tensor.row), tensor.dtype)
            self._device[tensor.name] = gpu.allocate(largest * tensor.row_bytes)
            self._require(
                context.set_tensor_address(tensor.name, int(self._device[tensor.name])),
                f"set the address of {tensor.name}",
            )

    def _set_batch(self, batch: int) -> None:
        """Change the context's shape, and drop the graph, which holds for the old shape only.

        A graph is invalid after its context's state changed, by NVIDIA (TensorRT issue 3798).
        """
        if self._graph is not None:
            often = self._replays >= self._patience
            self._patience = _FIRST_PATIENCE if often else min(2 * self._patience, _MOST_PATIENCE)
            self._drop_graph()
        self._require(
            self._context.set_input_shape(self._images.name, (batch, *self._images.row)),
            f"set the batch to {batch}",
        )
        self.batch, self._runs, self._replays = batch, 0, 0

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def _queue(self, batch: int) -> None:
        """Queue the copy in, the inference and the copy out."""
        stream, images = self._stream, self._images.name
        self._gpu.copy_to_device(int(self._device[images]), self._host[images][:batch], stream)
        self._require(self._context.execute_async_v3(stream.handle), "start the inference")
        for tensor in self._outputs:
            host = self._host[tensor.name][:batch]
            self._gpu.copy_to_host(host, int(self._device[tensor.name]), stream)

    def _record(self, batch: int) -> None:
        """Record a graph if this batch size was run often enough in a row.

        TensorRT sets itself up for a new shape in the first run after a change, which cannot be
        recorded. A graph is therefore recorded only after a run of the same shape.
        """
        if self._bindings is None or self.graph_problem is not None or self._runs < self._patience:
            return
        try:
            self._graph = CudaGraph.record(
                self._bindings, self._stream.handle, lambda: self._queue(batch)
            )
        except BackendError as err:
            self.graph_problem = str(err)

    def _require(self, done: object, what: str) -> None:
        if not done:
            raise BackendError(f"TensorRT cannot {what}: {self._explain()}")
