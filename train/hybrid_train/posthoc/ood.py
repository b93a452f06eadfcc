"""Fit the out-of-distribution detector: a compact Gaussian of the training images' features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.uncertainty.ood import OodDetector

Array = NDArray[Any]

#: Directions kept: with 2816 features 0.4 MFLOP an image, and a file of 0.4 MB.
DIRECTIONS = 32
#: Share of images like the validation images that are flagged as out-of-distribution.
FALSE_ALARMS = 0.01
#: Relative error of a feature that rounding causes. Measured with the tiny preset:
#: 0.01 for BF16, 0.05 for a validated INT8 file (docs/trust.md).
ROUNDING = 0.05


def fit_ood(
    train: Array,
    validation: Array,
    branches: Sequence[int],
    *,
    directions: int = DIRECTIONS,
    false_alarms: float = FALSE_ALARMS,
) -> OodDetector:
    """Fit the detector.

    A branch's features are divided by their root mean square. The covariance's leading directions
    keep their variances, all others share the mean of theirs (probabilistic PCA, Tipping and
    Bishop 1999). With n training images at most n / 8 directions are kept: a few images determine
    only a few variances. The distances of reference are those of features with an error of
    ROUNDING, so that the rate of false alarms also holds for files of lower precision.

    Args:
        train: Features ``[n, F]`` of training images.
        validation: Features ``[m, F]`` of images not trained on.
        branches: Number of features of each branch.
        directions: Most directions that keep their variance.
        false_alarms: Share of images like those of validation that is flagged.
    """
    train = np.asarray(train, np.float64)
    edges = np.cumsum([0, *branches])
    spread = [np.sqrt((train[:, a:b] ** 2).mean()) for a, b in pairwise(edges)]
    mean, scale = train.mean(0), np.repeat(np.maximum(spread, 1e-6), branches)
    _, singular, basis = np.linalg.svd((train - mean) / scale, full_matrices=False)
    variances = singular**2 / max(1, len(train) - 1)
    kept = min(directions, len(train) // 8, len(variances) - 1)
    rest = variances[kept:].sum() / max(1, train.shape[1] - kept)
    arrays = {
        "mean": mean,
        "scale": scale,
        "basis": basis[:kept],
        "variances": variances[:kept] + ROUNDING**2,
        "rest": np.array([rest + ROUNDING**2]),
    }
    fitted: dict[str, Any] = {
        name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()
    }
    unfinished = OodDetector(**fitted, reference=np.ones(1, np.float32))
    error = np.random.default_rng(0).normal(0, ROUNDING, np.shape(validation))
    distances = unfinished.distances(np.asarray(validation) * (1 + error))
    return OodDetector(**fitted, reference=np.sort(distances), false_alarms=false_alarms)
