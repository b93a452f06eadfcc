"""Confidence intervals by drawing complete patients again and again (Efron and Tibshirani 1993).

Images of one patient resemble each other: drawing images would make intervals too narrow.
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
    """95% percentile interval of ``measure(indices)`` over draws of whole groups.

    None where there are fewer than two groups or the measure is missing in most draws.
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
    """What bootstrap_interval returns for the AUROC, in a fraction of the time.

    ``chosen`` are the classes whose one-against-the-rest areas are averaged. A draw is a weight
    for each image, so that each score is sorted once and not once a draw.
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
    """What bootstrap_interval returns for the share of ``right`` among the ``counted``, fast.

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
    """The indices of each group; of each image where there are no groups."""
    if groups is None:
        return list(np.arange(count)[:, None])
    _, inverse = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.cumsum(np.bincount(inverse))[:-1])


def _weights(groups: int, draws: int, seed: int, block: int) -> Iterator[Array]:
    """How often each group is drawn, ``[up to block, groups]``."""
    rng = np.random.default_rng(seed)
    for start in range(0, draws, block):
        yield np.stack(
            [
                np.bincount(rng.integers(groups, size=groups), minlength=groups).astype(np.float64)
                for _ in range(min(block, draws - start))
            ]
        )


def _sorted_by_score(score: Array, truth: Array) -> tuple[Array, Array, Array]:
    """The order of rising scores, the truth in that order, and where runs of equal scores start."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.concatenate(([0], np.flatnonzero(ranked[1:] != ranked[:-1]) + 1))
    return order, truth[order], starts


def _areas(weights: Array, group_of: Array, truth: Array, starts: Array) -> Array:
    """AUROC of each draw: pairs ranked rightly, ties by half, over all pairs; NaN for no pairs."""
    drawn = weights[:, group_of]
    positive = np.add.reduceat(drawn * truth, starts, axis=1)
    negative = np.add.reduceat(drawn * ~truth, starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    right = (positive * (below + negative / 2)).sum(1)
    return _ratio(right, positive.sum(1) * negative.sum(1))


def _ratio(above: Array, below: Array) -> Array:
    """NaN where there is nothing to divide by."""
    ratio: Array = np.divide(above, below, where=below > 0, out=np.full(len(above), np.nan))
    return ratio


def _interval(values: Array) -> tuple[float, float] | None:
    kept = values[np.isfinite(values)]
    if len(kept) < len(values) / 2:
        return None
    low, high = np.percentile(kept, PERCENTILES)
    return float(low), float(high)
