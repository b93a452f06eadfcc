"""The decision threshold, chosen on validation data by a criterion."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.spec import OperatingPoint
from hybrid_train.config import parse_criterion
from hybrid_train.evaluation.bootstrap import share_interval

Array = NDArray[Any]


def choose_operating_point(
    probabilities: Array,
    labels: Array,
    *,
    positive: str,
    criterion: str,
    groups: Array | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> OperatingPoint:
    """Return the threshold on the positive class's probability ``[n]`` that meets ``criterion``.

    "sensitivity=0.9" takes the largest threshold with at least that sensitivity. "specificity=0.9"
    takes the smallest with at least that specificity, or 1 if there is none. "youden" takes the
    one of greatest sensitivity + specificity - 1 (Youden 1950). A number is taken as it is.
    Intervals are 95% bootstrap intervals at that threshold, by group.

    Raises:
        UsageError: The criterion is none of these.
    """
    kind, value = parse_criterion(criterion)
    truth = np.asarray(labels).astype(bool)
    # float32, as the runtime returns them: a threshold cannot separate finer differences.
    probabilities = np.asarray(probabilities, np.float32).astype(np.float64)
    if kind == "fixed" or not truth.any() or truth.all():
        threshold = value if kind == "fixed" else 0.5
    else:
        threshold = _threshold(probabilities, truth, kind, value)

    found = at_threshold(probabilities, truth, threshold, groups, bootstrap=bootstrap, seed=seed)
    return OperatingPoint(
        positive=positive,
        threshold=float(threshold),
        criterion=criterion,
        sensitivity=found["sensitivity"],
        sensitivity_interval=found["sensitivity_interval"],
        specificity=found["specificity"],
        specificity_interval=found["specificity_interval"],
    )


def at_threshold(
    probabilities: Array,
    labels: Array,
    threshold: float,
    groups: Array | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a threshold on images, with 95% bootstrap intervals by group.

    Returns:
        Sensitivity, specificity and the predictive values; None for a rate of no images. The
        predictive values hold for the frequency of positives among these images.
    """
    truth = np.asarray(labels).astype(bool)
    called = np.asarray(probabilities, np.float32).astype(np.float64) >= threshold
    ratios = {  # which images are counted, and which of them are right
        "sensitivity": (truth, called),
        "specificity": (~truth, ~called),
        "positive_predictive_value": (called, truth),
        "negative_predictive_value": (~called, ~truth),
    }
    result: dict[str, Any] = {"threshold": float(threshold), "positive_calls": int(called.sum())}
    for name, (counted, right) in ratios.items():
        result[name] = float(right[counted].mean()) if counted.any() else None
        result[f"{name}_interval"] = share_interval(right, counted, groups, bootstrap, seed)
    return result


def _threshold(probabilities: Array, truth: Array, kind: str, value: float) -> float:
    """Return a threshold half-way between two probabilities, so that none is on the edge."""
    distinct = np.unique(probabilities)
    middles = (distinct[1:] + distinct[:-1]) / 2
    candidates = np.concatenate(([0.0], middles, [min(1.0, (distinct[-1] + 1) / 2)]))
    positives, negatives = np.sort(probabilities[truth]), np.sort(probabilities[~truth])
    sensitivity = 1 - np.searchsorted(positives, candidates) / len(positives)
    specificity = np.searchsorted(negatives, candidates) / len(negatives)
    if kind == "sensitivity":
        return float(candidates[sensitivity >= value - 1e-12].max())
    if kind == "specificity":
        enough = candidates[specificity >= value - 1e-12]
        return float(enough.min()) if len(enough) else 1.0
    return float(candidates[np.argmax(sensitivity + specificity)])
