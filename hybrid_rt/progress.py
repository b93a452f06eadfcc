"""A progress bar for a terminal, in a few lines; silent where stderr is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")

_WIDTH = 30  # characters
_EVERY = 0.1  # seconds between two drawings


def progress(
    items: Iterable[T], total: int, *, label: str, stream: TextIO | None = None
) -> Iterator[T]:
    """``items`` as they are, drawing how many of ``total`` came, the rate and the time left."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield from items
        return
    start = drawn = time.monotonic()
    done = 0
    try:
        for item in items:
            yield item
            done += 1
            now = time.monotonic()
            if now - drawn >= _EVERY:
                drawn = now
                stream.write(f"\r\x1b[K{_line(label, done, total, now - start)}")
                stream.flush()
    finally:
        stream.write("\r\x1b[K")
        stream.flush()


def _line(label: str, done: int, total: int, seconds: float) -> str:
    filled = round(_WIDTH * done / max(total, 1))
    rate = done / max(seconds, 1e-9)
    left = (total - done) / max(rate, 1e-9)
    bar = "#" * filled + "." * (_WIDTH - filled)
    return f"{label} [{bar}] {done}/{total}, {rate:.1f}/s, {left:.0f} s left"
