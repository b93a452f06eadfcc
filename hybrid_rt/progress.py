"""Progress of long work on stderr: tqdm's bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")

#: Seconds before a bar appears, and between two plain lines.
DELAY = 1.0
LINES_EVERY = 30.0


class _Lines:
    """A stream that writes each of tqdm's drawings on a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self._stream.write(f"{text.strip()}\n")

    def flush(self) -> None:
        self._stream.flush()


def progress(
    items: Iterable[T], total: int, *, label: str, stream: TextIO | None = None
) -> Iterator[T]:
    """Yield ``items``, showing how many of ``total`` came, the rate and the time left.

    Nothing is printed for short work. A bar is removed at the end.
    """
    from tqdm import tqdm

    stream = stream or sys.stderr
    terminal = stream.isatty()
    yield from tqdm(
        items,
        total=total,
        desc=label,
        leave=False,
        delay=DELAY if terminal else LINES_EVERY,
        mininterval=0.1 if terminal else LINES_EVERY,
        miniters=1,
        file=stream if terminal else _Lines(stream),
        bar_format=None
        if terminal
        else "{desc}: {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left",
    )


def print_above(line: str) -> None:
    """Print a line on stderr, above the bar if there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
