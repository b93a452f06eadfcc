"""Calibration of probabilities: reliability by bin, and the expected calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BINS = 15


def softmax(logits: Array) -> Array:
    """Return probabilities ``[n, classes]``, float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(1, keepdims=True)
    exponentials = np.exp(shifted)
    result: Array = exponentials / exponentials.sum(1, keepdims=True)
    return result


def reliability(
    logits: Array, labels: Array, temperature: float = 1.0, bins: int = BINS
) -> dict[str, list[Any]]:
    """Return probability, accuracy and count in equal-width bins of the top label's."""
    return _binned(softmax(np.asarray(logits) / temperature), labels, bins)


def calibration_error(probabilities: Array, labels: Array, bins: int = BINS) -> dict[str, Any]:
    """Return the mean gap of probability and accuracy over bins, weighted by count."""
    binned = _binned(probabilities, labels, bins)
    gaps = [
        n * abs(c - a)
        for n, c, a in zip(binned["count"], binned["probability"], binned["accuracy"], strict=True)
        if n
    ]
    return {
        "ece": float(sum(gaps) / max(1, len(labels))),
        "ece_binning": f"{bins} equal-width bins of the top label's probability",
    }


def _binned(probabilities: Array, labels: Array, bins: int) -> dict[str, list[Any]]:
    top = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    place = np.minimum((top * bins).astype(int), bins - 1)
    result: dict[str, list[Any]] = {"probability": [], "accuracy": [], "count": []}
    for k in range(bins):
        inside = place == k
        count = int(inside.sum())
        result["count"].append(count)
        result["probability"].append(float(top[inside].mean()) if count else None)
        result["accuracy"].append(float(right[inside].mean()) if count else None)
    return result
