"""predictions.csv: the finished model's prediction for each validation and test image.

Columns: split, image, group (the patient), label, predicted, p_<class> for each class (with the
temperature), ood_score (above 1 is out of distribution), then the data's own columns for
subgroups.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid_rt.files import atomic_path
from hybrid_rt.spec import ModelSpec
from hybrid_rt.uncertainty.ood import OodDetector
from hybrid_train.data.samples import Samples
from hybrid_train.data.splits import Split
from hybrid_train.posthoc.fit import Subset

PREDICTIONS = "predictions.csv"


def write_predictions(
    path: Path,
    spec: ModelSpec,
    detector: OodDetector,
    samples: Samples,
    split: Split,
    subsets: Mapping[str, Subset],
) -> None:
    """Write the complete file as CSV (RFC 4180, UTF-8; a null is an empty cell)."""
    columns = ["split", "image", "group", "label", "predicted"]
    columns += [*(f"p_{name}" for name in spec.classes), "ood_score", *samples.columns]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for name, subset in subsets.items():
            probabilities = subset.probabilities(spec)
            scores = detector.score(subset.features)
            for k, index in enumerate(split.subsets()[name].tolist()):
                row: list[Any] = [
                    name,
                    samples.names[index],
                    "" if samples.groups is None else samples.groups[index],
                    samples.classes[samples.labels[index]],
                    samples.classes[int(probabilities[k].argmax())],
                    *(f"{p:.9g}" for p in probabilities[k]),
                    f"{scores[k]:.6g}",
                ]
                row += [_cell(values[index]) for values in samples.columns.values()]
                writer.writerow(row)


def _cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return int(value) if isinstance(value, float) and value.is_integer() else value
