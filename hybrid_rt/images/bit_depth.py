"""Convert any number range to 8 bits, without clipping or guessing.

Full range keeps the high byte. Own range stretches the image's smallest and largest value to 0 and
255. A given range does the same with the caller's bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.errors import ImageError

_ROWS = 64  # rows converted at a time: the temporary arrays stay in the processor's cache


def full_range(values: NDArray[Any], bits: int, *, signed: bool = False) -> NDArray[np.uint8]:
    """Return ``floor((v - smallest) * 256 / 2**bits)``: the high byte of ``bits``-bit integers.

    An 8-bit image widened by repeating its byte (``v * 257`` for 16 bits) comes back unchanged.
    """
    out = np.empty(values.shape, np.uint8)
    for rows in _row_blocks(values):
        block = values[rows]
        if signed:
            block = block.astype(np.int64) + (1 << (bits - 1))
        out[rows] = block >> (bits - 8) if bits >= 8 else block << (8 - bits)
    return out


def own_range(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Stretch the image's smallest and largest value to 0 and 255; one single value becomes 0.

    Raises ImageError for values that are not finite.
    """
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(_not_finite(low, high))
    if values.dtype == np.uint16:
        return apply_table(values, linear(np.arange(65536), float(low), float(high)))
    return _linear_blocks(values, float(low), float(high))


def given_range(values: NDArray[Any], bounds: tuple[float, float]) -> NDArray[np.uint8]:
    """Stretch ``bounds`` to 0 and 255, rounded to the nearest level.

    Raises ImageError for values that are not finite or lie outside by more than half a level.
    """
    low, high = bounds
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ImageError(f"float_range is ({low}, {high}); expected two finite numbers, low first")
    least, most = values.min(), values.max()
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ImageError(_not_finite(least, most))
    slack = (high - low) / 510
    if least < low - slack or most > high + slack:
        raise ImageError(
            f"values run from {least:.6g} to {most:.6g}; expected {low:g} to {high:g}: "
            "pass the range they have as float_range=(low, high)"
        )
    return _linear_blocks(values, low, high)


def linear(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map ``low`` to 0 and ``high`` to 255, rounded half up and clipped; 0 if they are equal."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    scaled = values.astype(np.float64)  # a copy: the caller's array stays as it is
    scaled -= low
    scaled *= 255
    scaled /= high - low
    scaled += 0.5
    return np.clip(scaled, 0, 255).astype(np.uint8)


def apply_table(values: NDArray[np.uint16], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return ``table[values]`` for a table of 65536 entries, in blocks that stay in the cache."""
    out = np.empty(values.shape, np.uint8)
    for rows in _row_blocks(values):
        np.take(table, values[rows], out=out[rows], mode="clip")
    return out


def _linear_blocks(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    out = np.empty(values.shape, np.uint8)
    for rows in _row_blocks(values):
        out[rows] = linear(values[rows], low, high)
    return out


def _row_blocks(values: NDArray[Any]) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, values.shape[0], _ROWS)]


def _not_finite(low: Any, high: Any) -> str:
    return (
        f"values run from {low} to {high}; expected finite numbers: replace NaN and infinity first"
    )
