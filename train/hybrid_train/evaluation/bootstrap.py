"""Bootstrap confidence intervals over complete patients (Efron and Tibshirani 1993).

Images of one patient resemble each other: draws of single images make intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PERCENTILES = (2.5, 97.5)
BLOCK = 4_000_000  # weights held at once


def bootstrap_interval(
    measure: Callable[[Array], float | None],
    count: int,
    groups: Array | None,
    draws: int,
    seed: int,
) -> tuple[float, float] | None:
    """Return the 95% percentile interval of ``measure(indices)`` over draws of complete groups.

    None if there are fewer than two groups, or if the measure is undefined in most draws.
    """
    members = group_members(groups, count)
    if len(members) < 2 or draws < 1:
        return None
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        chosen = rng.integers(len(members), size=len(members))
        value = measure(np.concatenate([members[g] for g in chosen]))
        values.append(np.nan if value is None else value)
    return _interval(np.array(values))


def auroc_interval(
    probabilities: Array,
    labels: Array,
    chosen: Sequence[int],
    groups: Array | None,
    draws: int,
    seed: int,
) -> tuple[float, float] | None:
    """Return bootstrap_interval of the AUROC, much faster.

    A draw is a weight for each image, so that each score is sorted once and not once a draw.

    Args:
        chosen: The classes whose one-against-the-rest areas are averaged.
    """
    members = group_members(groups, len(labels))
    if len(members) < 2 or draws < 1:
        return None
    group_of = np.empty(len(labels), np.intp)
    for g, indices in enumerate(members):
        group_of[indices] = g
    ranked = [_sorted_by_score(probabilities[:, c], labels == c) for c in chosen]
    values = []
    for weights in _weights(len(members), draws, seed, max(1, BLOCK // len(labels))):
        areas = [_areas(weights, group_of[order], *rest) for order, *rest in ranked]
        there = np.isfinite(areas).sum(0)
        values.append(_ratio(np.nansum(areas, 0), there))
    return _interval(np.concatenate(values))


def share_interval(
    right: Array, counted: Array, groups: Array | None, draws: int, seed: int
) -> tuple[float, float] | None:
    """Return bootstrap_interval of the share of ``right`` among the ``counted``, much faster.

    Both are bool ``[n]``. A draw is a weight for each group, so that sums by group are enough.
    """
    members = group_members(groups, len(right))
    if len(members) < 2 or draws < 1:
        return None
    below = np.array([counted[m].sum() for m in members], np.float64)
    above = np.array([(counted[m] & right[m]).sum() for m in members], np.float64)
    block = max(1, BLOCK // len(members))
    shares = [_ratio(w @ above, w @ below) for w in _weights(len(members), draws, seed, block)]
    return _interval(np.concatenate(shares))


def group_members(groups: Array | None, count: int) -> list[Array]:
    """Return the indices of each group; without groups each image is one."""
    if groups is None:
        return list(np.arange(count)[:, None])
    _, inverse = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.cumsum(np.bincount(inverse))[:-1])


def _weights(groups: int, draws: int, seed: int, block: int) -> Iterator[Array]:
    """Yield how often each group is drawn, ``[up to block, groups]``."""
    rng = np.random.default_rng(seed)
    for start in range(0, draws, block):
        yield np.stack(
            [
                np.bincount(rng.integers(groups, size=groups), minlength=groups).astype(np.float64)
                for _ in range(min(block, draws - start))
            ]
        )


def _sorted_by_score(score: Array, truth: Array) -> tuple[Array, Array, Array]:
    """Return the order of rising scores, the truth in it, and the starts of equal runs."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.concatenate(([0], np.flatnonzero(ranked[1:] != ranked[:-1]) + 1))
    return order, truth[order], starts


def _areas(weights: Array, group_of: Array, truth: Array, starts: Array) -> Array:
    """Return the AUROC of each draw; ties count half, and NaN means no pairs."""
    drawn = weights[:, group_of]
    positive = np.add.reduceat(drawn * truth, starts, axis=1)
    negative = np.add.reduceat(drawn * ~truth, starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    right = (positive * (below + negative / 2)).sum(1)
    return _ratio(right, positive.sum(1) * negative.sum(1))


def _ratio(above: Array, below: Array) -> Array:
    """Divide; NaN if the divisor is 0."""
    ratio: Array = np.divide(above, below, where=below > 0, out=np.full(len(above), np.nan))
    return ratio


def _interval(values: Array) -> tuple[float, float] | None:
    kept = values[np.isfinite(values)]
    if len(kept) < len(values) / 2:
        return None
    low, high = np.percentile(kept, PERCENTILES)
    return float(low), float(high)
