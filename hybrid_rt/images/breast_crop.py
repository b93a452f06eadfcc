"""Find the breast's bounding box on a mammogram, without scan borders and view labels.

Scanned mammograms have white borders and burned-in letters, which a network can learn in place of
the breast. The search runs on a copy of at most 128 pixels a side, in NumPy:

1. lines at the four edges that are brighter than the image just inside them are scan border;
2. Otsu's threshold (IEEE Trans. SMC 9, 1979), lowered towards the background so that the dim
   skin line stays, and an opening that cuts thin bridges;
3. the largest connected component that reaches the left or the right side: labels lie free.

An image without such a component, or with one that is not clear, is kept complete.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LONG_SIDE = 128  # pixels of the searched copy
_BORDER_DEPTH = 0.04  # of the side: how far a scan border reaches in
_BORDER_STEP = 40  # grey levels a border is brighter than what lies inside it
_BORDER_SHARE = 0.12  # of a line that has to be so for the line to be border
_LOWERED = 0.2  # of the way from the background to Otsu's threshold
_LEAST_AREA = 0.04  # of the searched copy
_LEAST_SIDE = 32  # pixels of the searched copy
_LEAST_DARK = 0.08  # of the searched copy that is background
_DARKNESS = 0.5  # how bright the background may be, as a share of the breast
_LEAST_FILL = 0.35  # of its bounding box that the breast fills
_LEAST_WIDTH = 0.2  # of the widest row: narrower rows at both ends are glow along the chest wall
_MARGIN = 0.04  # of the height, added above and below: dim skin
_NIPPLE = 0.1  # of the width, added on both sides: a dim nipple
_SIDE_REACH = 0.03  # of the width: how near the breast comes to a side

_Mask = NDArray[np.bool_]


def breast_box(image: Image.Image) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the breast in pixels, right and bottom exclusive.

    ``image`` is of mode L or RGB with a dark background. The box is the complete image if no breast
    is clear.
    """
    whole = (0, 0, image.width, image.height)
    factor = -(-max(image.size) // _LONG_SIDE)
    small = np.asarray(image.reduce(factor).convert("L")).astype(np.int16)
    if min(small.shape) < _LEAST_SIDE:
        return whole
    top, bottom, left, right = _inside_border(small)
    inner = small[top:bottom, left:right]
    bright = inner > _threshold(inner)
    if not _on_dark_background(inner, bright):
        return whole
    component = _breast(_opened(bright))
    if component is None:
        return whole
    first, last = _bounds(component.sum(axis=1) >= _LEAST_WIDTH * component.sum(axis=1).max())
    start, stop = _bounds(component[first:last].any(axis=0))
    tall, wide = 1 + round(_MARGIN * (last - first)), 1 + round(_NIPPLE * (stop - start))
    return (
        (left + max(start - wide, 0)) * factor,
        (top + max(first - tall, 0)) * factor,
        min((left + min(stop + wide, inner.shape[1])) * factor, image.width),
        min((top + min(last + tall, inner.shape[0])) * factor, image.height),
    )


def _bounds(line: Any) -> tuple[int, int]:
    """First True and one after the last True."""
    found = np.flatnonzero(line)
    return int(found[0]), int(found[-1]) + 1


def _inside_border(small: NDArray[np.int16]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the image inside bright scan borders."""
    return (
        _border_lines(small),
        small.shape[0] - _border_lines(small[::-1]),
        _border_lines(small.T),
        small.shape[1] - _border_lines(small.T[::-1]),
    )


def _border_lines(small: NDArray[np.int16]) -> int:
    """How many of the first rows are scan border, and one for the blurred line after them."""
    depth = max(2, round(len(small) * _BORDER_DEPTH))
    inside = small[depth + 1 : depth + 3].max(axis=0)
    bright = (small[:depth] > inside + _BORDER_STEP).mean(axis=1) >= _BORDER_SHARE
    return int(np.flatnonzero(bright)[-1]) + 2 if bright.any() else 0


def _on_dark_background(values: NDArray[np.int16], bright: _Mask) -> bool:
    if not bright.any() or bright.mean() > 1 - _LEAST_DARK:
        return False
    return bool(values[~bright].mean() <= _DARKNESS * values[bright].mean())


def _threshold(values: NDArray[np.int16]) -> float:
    """Otsu's threshold, moved towards the most frequent dark level."""
    counts = np.bincount(values.ravel(), minlength=256)
    below = counts.cumsum()[:-1].astype(np.float64)
    above = values.size - below
    total = (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = below * above * (total[:-1] / below - (total[-1] - total[:-1]) / above) ** 2
    otsu = int(np.argmax(np.nan_to_num(spread)))
    background = int(np.argmax(counts[: otsu + 1]))
    return background + _LOWERED * (otsu - background)


def _opened(mask: _Mask) -> _Mask:
    """Erosion, then dilation, with a 3x3 square; the outside counts as mask."""
    return _dilated(~_dilated(~mask))


def _dilated(mask: _Mask) -> _Mask:
    padded = np.pad(mask, 1)
    tall = padded[:-2] | padded[1:-1] | padded[2:]
    wide: _Mask = tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]
    return wide


def _breast(mask: _Mask) -> _Mask | None:
    """The largest component that reaches the left or right side; None if it is small or ragged."""
    reach = max(1, round(mask.shape[1] * _SIDE_REACH))
    best: _Mask | None = None
    for component in _components(mask):
        touches = component[:, :reach].any() or component[:, -reach:].any()
        if touches and (best is None or component.sum() > best.sum()):
            best = component
    if best is None or best.sum() < _LEAST_AREA * mask.size:
        return None
    (top, bottom), (left, right) = _bounds(best.any(axis=1)), _bounds(best.any(axis=0))
    return best if best.sum() >= _LEAST_FILL * (bottom - top) * (right - left) else None


def _components(mask: _Mask) -> list[_Mask]:
    """The 4-connected components of at least _LEAST_AREA, found from runs of True in each row."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, stops = np.argwhere(edges == 1), np.argwhere(edges == -1)[:, 1]
    runs = [(int(r), int(a), int(b)) for (r, a), b in zip(starts, stops, strict=True)]
    parent = list(range(len(runs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    above = 0  # the first run of the row above that may still touch
    for i, (row, start, stop) in enumerate(runs):
        while above < i and (
            runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] <= start)
        ):
            above += 1
        j = above
        while j < i and runs[j][0] == row - 1 and runs[j][1] < stop:
            parent[root(i)] = root(j)
            j += 1
    areas: dict[int, int] = {}
    for i, (_, start, stop) in enumerate(runs):
        areas[root(i)] = areas.get(root(i), 0) + stop - start
    components = []
    for label, area in areas.items():
        if area >= _LEAST_AREA * mask.size:
            component = np.zeros_like(mask)
            for i, (row, start, stop) in enumerate(runs):
                if root(i) == label:
                    component[row, start:stop] = True
            components.append(component)
    return components
