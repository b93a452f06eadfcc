"""Metrics of a classifier, from scikit-learn, with intervals by patient.

Every function takes logits ``[n, classes]`` and labels ``[n]`` as class indices. A measure that
is undefined on a split, such as AUROC if a class is absent, is None; ``notes`` has the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.errors import DataError, TrainingError, UsageError
from hybrid_train.evaluation.bootstrap import auroc_interval
from hybrid_train.evaluation.reliability import calibration_error, softmax

Array = NDArray[Any]


def quick(logits: Array, labels: Array) -> dict[str, Any]:
    """Return what is shown after each epoch: loss, accuracy, balanced accuracy, AUROC."""
    probabilities = softmax(logits)
    return {**_basic(probabilities, labels), "auroc": auroc(probabilities, labels, 1)}


def evaluate(
    logits: Array,
    labels: Array,
    classes: Sequence[str],
    *,
    groups: Array | None = None,
    temperature: float = 1.0,
    positive: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all measures of one split, ready for JSON.

    All but ``ece_before_temperature`` hold for the calibrated probabilities.

    Args:
        groups: Patients, which the bootstrap draws; without them it draws images.
        temperature: Divides the logits.
        positive: The class of AUROC, average precision and sensitivity if there are two; by
            default the second. With more classes these are means, one against the rest.
        bootstrap: Draws for the interval.

    Raises:
        UsageError: ``positive`` is no class.
        DataError: There are no images.
        TrainingError: Logits are not finite.
    """
    from sklearn import metrics as sk

    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if len(labels) == 0:
        raise DataError("no images to measure; expected at least one in the split")
    lost = int((~np.isfinite(logits)).any(1).sum())
    if lost:
        raise TrainingError(
            f"the logits of {lost} of {len(labels)} images are not finite; train with a smaller "
            "learning rate or in fp32"
        )
    probabilities = softmax(logits / temperature)
    predicted = probabilities.argmax(1)
    index = positive_index(classes, positive)
    result: dict[str, Any] = {"count": len(labels), **_basic(probabilities, labels)}
    known = list(range(len(classes)))
    for average in ("weighted", "macro"):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            labels, predicted, labels=known, average=average, zero_division=0.0
        )
        result |= {
            f"precision_{average}": float(precision),
            f"recall_{average}": float(recall),
            f"f1_{average}": float(f1),
        }
    result["auroc"] = auroc(probabilities, labels, index)
    result["auroc_interval"] = auroc_interval(
        probabilities, labels, averaged_classes(probabilities, index), groups, bootstrap, seed
    )
    result["average_precision"] = average_precision(probabilities, labels, index)
    result["sensitivity_at_90_specificity"] = sensitivity_at(probabilities, labels, index, 0.9)
    result |= calibration_error(probabilities, labels)
    uncalibrated = calibration_error(softmax(logits), labels)
    result["ece_before_temperature"] = uncalibrated["ece"]
    onehot = np.eye(len(classes))[labels]
    result["brier"] = float(((probabilities - onehot) ** 2).sum(1).mean())
    result["per_class"] = per_class(probabilities, predicted, labels, classes)
    result["confusion_matrix"] = sk.confusion_matrix(labels, predicted, labels=known).tolist()
    absent = [name for c, name in enumerate(classes) if not (labels == c).any()]
    result["notes"] = [f"no image of class {name!r} in this split" for name in absent]
    return result


def _basic(probabilities: Array, labels: Array) -> dict[str, float]:
    predicted = probabilities.argmax(1)
    recalls = [(predicted[labels == c] == c).mean() for c in np.unique(labels)]
    return {
        "loss": log_loss(probabilities, labels),
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
    }


def positive_index(classes: Sequence[str], positive: str | None) -> int:
    """Return the index of the positive class, by default the second."""
    if positive is None:
        return 1
    if positive not in classes:
        raise UsageError(f"positive is {positive!r}; expected one of {', '.join(classes)}")
    return list(classes).index(positive)


def log_loss(probabilities: Array, labels: Array) -> float:
    """Return the mean of -log of the true class's probability."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def auroc(probabilities: Array, labels: Array, positive: int) -> float | None:
    """Return the area under the ROC curve; the mean, one against the rest, for more classes."""
    from sklearn.metrics import roc_auc_score

    return over_classes(probabilities, labels, positive, roc_auc_score)


def average_precision(probabilities: Array, labels: Array, positive: int) -> float | None:
    """Return the average precision, over classes as auroc."""
    from sklearn.metrics import average_precision_score

    return over_classes(probabilities, labels, positive, average_precision_score)


def over_classes(
    probabilities: Array, labels: Array, positive: int, score: Callable[..., float]
) -> float | None:
    """Return the positive class's score, or the mean over the classes that are present."""
    scores = []
    for c in averaged_classes(probabilities, positive):
        truth = labels == c
        if truth.any() and not truth.all():
            scores.append(float(score(truth, probabilities[:, c])))
    return float(np.mean(scores)) if scores else None


def averaged_classes(probabilities: Array, positive: int) -> Sequence[int]:
    """Return the classes that a measure averages: the positive one of two, or all."""
    count = probabilities.shape[1]
    return [positive] if count == 2 else range(count)


def sensitivity_at(
    probabilities: Array, labels: Array, positive: int, specificity: float
) -> float | None:
    """Return the largest sensitivity at this specificity or more; classes as auroc."""
    from sklearn.metrics import roc_curve

    def best(truth: Array, score: Array) -> float:
        false_rate, true_rate, _ = roc_curve(truth, score)
        return float(true_rate[false_rate <= 1 - specificity + 1e-12].max())

    return over_classes(probabilities, labels, positive, best)


def per_class(
    probabilities: Array, predicted: Array, labels: Array, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return precision, recall, F1, AUROC and support of each class."""
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    known = list(range(len(classes)))
    columns = precision_recall_fscore_support(labels, predicted, labels=known, zero_division=0.0)
    rows = []
    for c, name in enumerate(classes):
        truth = labels == c
        both = truth.any() and not truth.all()
        rows.append(
            {
                "class": name,
                "precision": float(columns[0][c]),
                "recall": float(columns[1][c]),
                "f1": float(columns[2][c]),
                "auroc": float(roc_auc_score(truth, probabilities[:, c])) if both else None,
                "support": int(truth.sum()),
            }
        )
    return rows
