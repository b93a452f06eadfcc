"""Decode in threads while the model runs: any number of images, in order, in constant memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np

from hybrid_rt.backends.base import Outputs, Pixels
from hybrid_rt.errors import HybridError

#: A source with its row of the outputs, or with the error that kept it from being read.
Result: TypeAlias = tuple[Any, "Outputs | HybridError"]


def default_decode_threads() -> int:
    """As many as the process may use, at most 8."""
    return min(len(os.sched_getaffinity(0)), 8)


def run_pipeline(
    sources: Iterable[Any],
    load: Callable[[Any], Pixels],
    run: Callable[[Pixels], Outputs],
    *,
    batch_size: int,
    decode_threads: int,
    parallel: int = 1,
) -> Iterator[Result]:
    """Results for ``sources`` in their order.

    At most two batches and one image per decoding thread are held decoded, and ``parallel`` + 1
    batches are under way or waiting to be taken. An error that ``load`` raises takes the place of
    its source; one that ``run`` raises ends the iteration.
    """
    window = 2 * batch_size + decode_threads
    remaining = iter(sources)
    decoding: deque[tuple[Any, Future[Pixels]]] = deque()
    running: deque[_Batch] = deque()
    decoders = ThreadPoolExecutor(decode_threads, "hybrid-decode")
    runners = ThreadPoolExecutor(parallel, "hybrid-run")

    def fill() -> None:
        while len(decoding) < window:
            try:
                source = next(remaining)
            except StopIteration:
                return
            decoding.append((source, decoders.submit(load, source)))

    try:
        fill()
        while decoding:
            batch = _Batch()
            while decoding and len(batch.entries) < batch_size:
                source, future = decoding.popleft()
                batch.add(source, future)
            batch.start(runners, run)
            running.append(batch)
            fill()
            while len(running) > parallel:
                yield from running.popleft().results()
        while running:
            yield from running.popleft().results()
    finally:  # also when the caller stops early
        decoders.shutdown(wait=True, cancel_futures=True)
        runners.shutdown(wait=True, cancel_futures=True)


class _Batch:
    """Some sources in order, the pixels of those that could be read, their outputs to come."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, HybridError | None]] = []
        self._pixels: list[Pixels] = []
        self._outputs: Future[Outputs] | None = None

    def add(self, source: Any, future: Future[Pixels]) -> None:
        try:
            self._pixels.append(future.result())
        except HybridError as err:
            self.entries.append((source, err))
        else:
            self.entries.append((source, None))

    def start(self, runners: ThreadPoolExecutor, run: Callable[[Pixels], Outputs]) -> None:
        if self._pixels:
            images = np.stack(self._pixels)  # [b, height, width, 3]
            self._pixels = []
            self._outputs = runners.submit(run, images)

    def results(self) -> Iterator[Result]:
        outputs = {} if self._outputs is None else self._outputs.result()
        row = 0
        for source, error in self.entries:
            if error is not None:
                yield source, error
            else:
                yield source, {name: values[row] for name, values in outputs.items()}
                row += 1
