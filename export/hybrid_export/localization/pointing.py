"""The pointing game: whether the hottest point of a heatmap lies in the lesion.

Zhang et al., "Top-down neural attention by excitation backprop", IJCV 2018; with baselines that
need no network, and the share of the heat inside the lesion (Wang et al., Score-CAM, 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFilter
from scipy.ndimage import distance_transform_edt

from hybrid_rt.results.explanation import Explanation

BRANCHES = ("vit", "cnn")
#: The tolerance, as a share of the image's longer side: 15 of 512 pixels.
TOLERANCE = 15 / 512
_BACKGROUND = 12  # grey levels; darker is outside the breast


@dataclass(frozen=True, kw_only=True)
class Pointing:
    """One way to point at something, over all images with a lesion that the model found."""

    name: str
    hits: float
    hits_interval: tuple[float, float]  # 95%, Wilson
    energy: float | None = None  # share of the heat inside the lesion


def point_at(found: Sequence[tuple[Explanation, NDArray[np.bool_]]]) -> list[Pointing]:
    """Return the pointing game of both branches and of what needs no network."""
    hits: dict[str, list[float]] = {}
    energy: dict[str, list[float]] = {}
    for explanation, mask in found:
        target = dilated(mask, round(TOLERANCE * max(mask.shape)))
        grey = np.asarray(explanation.image.convert("L"), np.float32)
        breast = grey > _BACKGROUND
        for branch in BRANCHES:
            heat = getattr(explanation, f"heatmap_{branch}")
            hits.setdefault(branch, []).append(float(target[hottest(heat)]))
            inside = float(heat[mask].sum() / max(float(heat.sum()), 1e-12))
            energy.setdefault(branch, []).append(inside)
        rows, columns = np.nonzero(breast)
        middle = (round(float(rows.mean())), round(float(columns.mean())))
        smooth = explanation.image.convert("L").filter(ImageFilter.GaussianBlur(8))
        for name, value in {
            "centre of the image": target[mask.shape[0] // 2, mask.shape[1] // 2],
            "centre of the breast": target[middle],
            "brightest point": target[hottest(np.asarray(smooth, np.float32))],
            "random point of the breast": target[breast].mean(),
        }.items():
            hits.setdefault(name, []).append(float(value))
            if name.startswith("random"):
                energy.setdefault(name, []).append(float(mask[breast].mean()))
    return [
        Pointing(
            name=name,
            hits=float(np.mean(values)),
            hits_interval=wilson(float(np.sum(values)), len(values)),
            energy=float(np.mean(energy[name])) if name in energy else None,
        )
        for name, values in hits.items()
    ]


def dilated(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Return what is within ``radius`` pixels of what is true."""
    near: NDArray[np.bool_] = distance_transform_edt(~mask) <= radius
    return near


def hottest(heat: NDArray[np.float32]) -> tuple[int, int]:
    """Return (row, column) of the largest value; the middle one of several equal ones."""
    places = np.argwhere(heat == heat.max())
    row, column = places[len(places) // 2]
    return int(row), int(column)


def wilson(successes: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson 1927).

    scipy's takes whole numbers of successes; a random point's expected hits are a fraction.
    """
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    return max(0.0, middle - half), min(1.0, middle + half)
