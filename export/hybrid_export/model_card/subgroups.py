"""How a model does on subgroups of its test images, from the rows of predictions.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid_rt.spec import ModelSpec
from hybrid_train.data.samples import SUBGROUP_COLUMNS, subgroup_of
from hybrid_train.evaluation.bootstrap import auroc_interval, share_interval
from hybrid_train.evaluation.metrics import auroc, averaged_classes
from hybrid_train.posthoc.operating_point import at_threshold

_DRAWS = 1000

Interval = tuple[float, float] | None


def subgroup_rows(
    predictions: Sequence[Mapping[str, str]], spec: ModelSpec, subset: str
) -> list[dict[str, Any]]:
    """Return a row for all images of ``subset``, then one for each subgroup.

    ``accuracy``, ``auroc``, ``sensitivity`` and ``specificity`` are (value, 95% interval); None is
    not defined. Intervals are bootstrap intervals, drawn by patient if the rows name patients.
    """
    rows = [row for row in predictions if row["split"] == subset]
    if not rows:
        return []
    probabilities = np.array([[float(row[f"p_{c}"]) for c in spec.classes] for row in rows])
    labels = np.array([spec.classes.index(row["label"]) for row in rows])
    patients = np.array([row["group"] for row in rows])
    groups = None if (patients == "").any() else patients
    chosen = [("all", np.ones(len(rows), bool))]
    for column in SUBGROUP_COLUMNS:
        if column in rows[0]:
            keys = np.array([_key(column, row[column]) for row in rows])
            chosen += [(f"{column} {key}", keys == key) for key in sorted(set(keys.tolist()))]
    return [
        _measured(name, spec, probabilities[k], labels[k], None if groups is None else groups[k])
        for name, k in chosen
    ]


def _measured(
    name: str, spec: ModelSpec, probabilities: Any, labels: Any, groups: Any
) -> dict[str, Any]:
    right = probabilities.argmax(1) == labels
    everywhere = np.ones(len(labels), bool)
    point = spec.operating_point
    positive = 1 if point is None else spec.classes.index(point.positive)
    row: dict[str, Any] = {
        "subgroup": name,
        "images": len(labels),
        "patients": None if groups is None else len(np.unique(groups)),
        "positives": int((labels == positive).sum()) if len(spec.classes) == 2 else None,
        "accuracy": (
            float(right.mean()), share_interval(right, everywhere, groups, _DRAWS, 0)
        ),
        "auroc": (
            auroc(probabilities, labels, positive),
            auroc_interval(
                probabilities, labels, averaged_classes(probabilities, positive), groups, _DRAWS, 0
            ),
        ),
    }  # fmt: skip
    if point is not None:
        found = at_threshold(
            probabilities[:, positive], labels == positive, point.threshold, groups
        )
        for measure in ("sensitivity", "specificity"):
            row[measure] = (found[measure], found[f"{measure}_interval"])
    return row


def _key(column: str, text: str) -> str:
    """Return a cell as its subgroup's name; ages in bands, as in the report."""
    if text == "":
        return "unknown"
    if column != "age":
        return text
    try:
        return subgroup_of(column, float(text))
    except ValueError:
        return text
