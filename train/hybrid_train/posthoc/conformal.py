"""Calibrate prediction sets, and measure them on other images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.uncertainty.conformal import By, Conformal, RankTable

Array = NDArray[Any]

#: Entries kept in all tables together: about 10 KB of JSON.
ENTRIES = 1000
#: A class's table is worth keeping with this many entries.
FEWEST = 25
#: Coverages that a compact table returns as exactly as a complete one.
USUAL = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.98, 0.99, 0.995, 0.999)
#: Coverages in reports.
SHOWN = (0.8, 0.9, 0.95)

_DIGITS = 6


def calibrate(
    probabilities: Array,
    labels: Array,
    classes: Sequence[str],
    *,
    groups: Array | None = None,
    calibrated_on: str = "validation",
) -> Conformal:
    """Return the tables for calibrated probabilities ``[n, classes]`` of images not trained on."""
    own = np.asarray(probabilities, np.float64)[np.arange(len(labels)), labels]
    room = ENTRIES // (len(classes) + 1)
    kept = list(classes) if room >= FEWEST else []
    return Conformal(
        labels=tuple(classes),
        images=table(own, ENTRIES - room * len(kept)),
        classes={name: table(own[labels == c], room) for c, name in enumerate(kept)},
        groups=None if groups is None else len(np.unique(groups)),
        calibrated_on=calibrated_on,
    )


def table(own: Array, most: int) -> RankTable:
    """Return at most ``most`` order statistics of the true class's probabilities ``[n]``.

    If some must go, the ranks of the USUAL coverages stay, and others in equal steps, half of
    them above 0.9. Numbers are rounded down, so that no rounding makes a set smaller, neither
    here nor in a runtime's float32.
    """
    falling = np.sort(np.asarray(own, np.float64))[::-1]
    count = len(falling)
    ranks: NDArray[np.int64] | None = None
    if count > most:
        even = most - len(USUAL) - 1
        steps = (np.linspace(0, 0.9, even // 2), np.linspace(0.9, 1, even - even // 2))
        wanted = np.ceil((count + 1) * np.concatenate((*steps, USUAL)) - 1e-9).astype(np.int64)
        ranks = np.unique(np.append(wanted.clip(1, count), count))
        falling = falling[ranks - 1]
    return RankTable(
        count=count,
        probabilities=tuple(rounded_down(p) for p in falling.tolist()),
        ranks=None if ranks is None else tuple(ranks.tolist()),
    )


def rounded_down(value: float) -> float:
    """Return the value with six significant digits, rounded down; 0 below 1e-12."""
    if value < 1e-12:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    lower = float(f"{math.floor(value / unit * (1 - 1e-12)) * unit:.{_DIGITS}g}")
    return min(lower, value)


def sets(conformal: Conformal, probabilities: Array, coverage: float, by: By) -> Array:
    """Return the labels of each image's set as the runtime chooses them: bool ``[n, classes]``."""
    rule = conformal.rule(coverage, by)
    thresholds = np.array([rule.thresholds[name] for name in conformal.labels])
    inside: Array = np.asarray(probabilities) >= thresholds
    inside[np.arange(len(inside)), np.argmax(probabilities, 1)] = True
    return inside


def measure(conformal: Conformal, probabilities: Array, labels: Array) -> list[dict[str, Any]]:
    """Return coverage and size of the sets, for each of SHOWN, by class and over all images."""
    rows = []
    ways: tuple[By, ...] = ("class", "image") if conformal.classes else ("image",)
    for by in ways:
        for coverage in SHOWN:
            inside = sets(conformal, probabilities, coverage, by)
            covered = inside[np.arange(len(labels)), labels]
            rows.append(
                {
                    "wanted": coverage,
                    "by": by,
                    "coverage": float(covered.mean()),
                    "per_class": {
                        name: float(covered[labels == c].mean())
                        for c, name in enumerate(conformal.labels)
                        if (labels == c).any()
                    },
                    "mean_size": float(inside.sum(1).mean()),
                    "single": float((inside.sum(1) == 1).mean()),
                    "note": conformal.rule(coverage, by).note,
                }
            )
    return rows
