"""What is measured between a file's outputs and PyTorch's, each as one number."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.backends.base import Outputs
from hybrid_rt.spec import ModelSpec
from hybrid_train.evaluation.metrics import auroc as trained_auroc
from hybrid_train.evaluation.reliability import softmax


def logit_scale(logits: NDArray[np.float32]) -> float:
    """Return the largest logit over 10, or 1; rounding and tolerances grow with it."""
    return max(1.0, float(np.abs(logits).max()) / 10)


def auroc(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], spec: ModelSpec
) -> float | None:
    """Return hybrid_train's AUROC of the images whose label is known (not -1).

    None if no class has both positives and negatives; NaN if a probability is not finite.
    """
    known = labels >= 0
    if not np.isfinite(probabilities[known]).all():
        return float("nan")
    point = spec.operating_point
    positive = spec.classes.index(point.positive) if point else 1
    return trained_auroc(probabilities[known], labels[known], positive)


def one_pair(labels: NDArray[np.int64]) -> float:
    """Return how far an AUROC moves if one positive and one negative image change places.

    With few images that is more than any tolerance; a file is not rejected for one such pair.
    """
    counts = np.bincount(labels[labels >= 0])
    counts = counts[counts > 0]
    if len(counts) < 2:
        return 0.0
    return float(1 / min(int(c) * int(counts.sum() - c) for c in counts))


def top1_flips(
    got: NDArray[np.float32], expected: NDArray[np.float32], tie: float
) -> NDArray[np.bool_]:
    """Return whether the largest logit of each image is another one and PyTorch's are no tie."""
    top = np.sort(expected, axis=1)
    clear = top[:, -1] - top[:, -2] > tie
    flipped = (got.argmax(1) != expected.argmax(1)) | ~np.isfinite(got).all(1)
    return np.asarray(flipped & clear)


def changed_decisions(
    got: Outputs, expected: Outputs, spec: ModelSpec, tie: float
) -> NDArray[np.bool_]:
    """Return whether each image is on the other side of the operating point, PyTorch's clear."""
    point = spec.operating_point
    if point is None:
        return top1_flips(got["logits"], expected["logits"], tie)
    column = spec.classes.index(point.positive)
    before, after = (o["probabilities"][:, column] for o in (expected, got))
    clear = np.abs(before - point.threshold) > tie / 4  # the softmax's slope is at most 1/4
    changed = (before >= point.threshold) != (after >= point.threshold)
    return np.asarray((changed | ~np.isfinite(after)) & clear)


def cosine_min(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the smallest cosine between rows; -1 if one is not finite."""
    a, b = got.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / np.maximum(norms, 1e-30)
    return float(np.where(np.isfinite(cosine), cosine, -1.0).min())


def heatmap_correlation(
    got: Outputs, expected: Outputs, negligible: float = 0.0
) -> tuple[float, float] | None:
    """Return how well heatmaps correlate with PyTorch's; None if none can be compared.

    The first value is what three of four maps of the worse branch reach, the second the smallest of
    all. Only images with the same predicted class are compared: a map is about the class. The heat
    of a map adds up to how far its branch moves the logit, to first order. Below ``negligible`` the
    branch has no influence on the prediction, its map is rounding and is left out. A single image
    may differ with reason: if a unit of the head is near 0, rounding takes its whole gradient away,
    and in a layer of 64 units that is 18% of it.
    """
    same = got["logits"].argmax(1) == expected["logits"].argmax(1)
    reached, smallest = [], []
    for name in expected:
        if not name.startswith("heatmap_"):
            continue
        found = [
            _correlation(a, b)
            for a, b in zip(got[name][same], expected[name][same], strict=True)
            if b.sum() > negligible and b.std() > 1e-3 * max(float(expected[name].max()), 1e-12)
        ]
        if found:
            reached.append(float(np.quantile(found, 0.25)))
            smallest.append(min(found))
    return (min(reached), min(smallest)) if reached else None


def _correlation(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    a = got.astype(np.float64) - got.mean(dtype=np.float64)
    b = expected.astype(np.float64) - expected.mean(dtype=np.float64)
    size = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0


def probability_gap(outputs: Outputs, spec: ModelSpec) -> float:
    """Return how far the probabilities are from the softmax of the file's own logits."""
    expected = softmax(outputs["logits"].astype(np.float64) / spec.temperature)
    return float(np.abs(outputs["probabilities"] - expected).max())
