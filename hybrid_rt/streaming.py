"""Decode in threads while the model runs: any number of images, in order, in constant memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from hybrid_rt.backends.base import Outputs, Pixels
from hybrid_rt.cpu import cores
from hybrid_rt.errors import BackendError, HybridError
from hybrid_rt.images.sources import Sources, is_named, own_copy, source_name

_MAX_DECODE_THREADS = 8

#: Outputs that a prediction is made of.
_DECIDING = ("probabilities", "logits", "features")

#: A source, its name, and its row of the outputs or the error that was raised when it was read.
Result: TypeAlias = tuple[Any, str, "Outputs | HybridError"]


@dataclass(kw_only=True)
class Pipeline:
    """Decoding and running, with the settings of one call.

    ``load`` makes pixels of a source, ``run`` makes outputs of a batch. ``is_ready`` is true for
    an array of 3 or 4 dimensions that needs no ``load``. ``decode_threads`` is by default the
    number of cores, at most 8. ``parallel`` batches run side by side.
    """

    load: Callable[[Any], Pixels]
    run: Callable[[Pixels], Outputs]
    is_ready: Callable[[Any, int], bool]
    batch_size: int
    decode_threads: int | None
    parallel: int = 1

    def run_all(self, sources: Sources) -> Iterator[tuple[Any, str, Outputs]]:
        """Yield sources, their names and their rows of the outputs; raise the first image's error.

        One image, and pixels that are ready, need no decoding and use no threads.
        """
        items, ready = sources.items, self.is_ready
        if sources.is_one:
            (source,) = items
            name = source_name(source)
            yield source, name, _checked(_row(self.run(self.load(source)[None]), 0, name))
        elif ready(items, 4) or (isinstance(items, list) and all(ready(i, 3) for i in items)):
            yield from self._run_ready(items)
        else:
            for i, (source, name, row) in enumerate(self.stream(items)):
                if isinstance(row, HybridError) and not is_named(source):
                    raise type(row)(f"image {i}: {row}") from row
                yield source, name, _checked(row)

    def _run_ready(self, images: Any) -> Iterator[tuple[Any, str, Outputs]]:
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            outputs = self.run(np.stack(batch) if isinstance(batch, list) else batch)
            for i, image in enumerate(batch):
                name = source_name(image, start + i)
                yield image, name, _checked(_row(outputs, i, name))

    def stream(self, sources: Iterable[Any]) -> Iterator[Result]:
        """Yield the results for ``sources`` in their order.

        At most two batches and one image per decoding thread are held decoded, and ``parallel`` + 1
        batches run or wait to be taken. An error that ``load`` raises, or an output that is not
        finite, takes the place of its source's row. An error that ``run`` raises ends the
        iteration. An error of the iterator ``sources`` is raised after the results of all that it
        yielded. What an iterator yields may be changed by it afterwards: it is copied here.
        """
        threads = self.decode_threads or min(cores(), _MAX_DECODE_THREADS)
        window = 2 * self.batch_size + threads
        remaining = iter(sources)
        keeps = isinstance(sources, (list, tuple, np.ndarray))
        broken: list[BaseException] = []
        count = itertools.count()
        decoding: deque[tuple[Any, Future[Pixels]]] = deque()
        running: deque[_Batch] = deque()
        decoders = ThreadPoolExecutor(threads, "hybrid-decode")
        runners = ThreadPoolExecutor(self.parallel, "hybrid-run")

        def fill() -> None:
            while not broken and len(decoding) < window:
                try:
                    source = next(remaining)
                    source = source if keeps else own_copy(source)
                except StopIteration:
                    break
                except Exception as err:  # of the caller's iterator
                    broken.append(err)
                    break
                decoding.append((source, decoders.submit(self.load, source)))

        try:
            fill()
            while decoding:
                batch = _Batch()
                while decoding and len(batch.entries) < self.batch_size:
                    batch.add(*decoding.popleft())
                batch.start(runners, self.run)
                running.append(batch)
                fill()
                while len(running) > self.parallel:
                    yield from running.popleft().results(count)
            while running:
                yield from running.popleft().results(count)
            if broken:
                raise broken[0]
        finally:  # also when the caller stops early
            decoders.shutdown(wait=True, cancel_futures=True)
            runners.shutdown(wait=True, cancel_futures=True)


def _row(outputs: Outputs, index: int, name: str) -> Outputs | HybridError:
    """One image's outputs, or the error that one of them is not finite."""
    row = {output: values[index] for output, values in outputs.items()}
    # A heatmap that is not finite is drawn cold; it decides nothing.
    wrong = [output for output in _DECIDING if not np.isfinite(row.get(output, 0)).all()]
    if not wrong:
        return row
    return BackendError(
        f"{name}: the model returned {', '.join(wrong)} that is not finite, so there is no "
        "prediction; run the self-test, and try another backend or precision"
    )


def _checked(row: Outputs | HybridError) -> Outputs:
    if isinstance(row, HybridError):
        raise row
    return row


class _Batch:
    """Sources in order, the pixels of those that could be read, and their outputs to come."""

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

    def results(self, count: Iterator[int]) -> Iterator[Result]:
        outputs = {} if self._outputs is None else self._outputs.result()
        rows = itertools.count()
        for source, error in self.entries:
            name = source_name(source, next(count))
            yield source, name, _row(outputs, next(rows), name) if error is None else error
