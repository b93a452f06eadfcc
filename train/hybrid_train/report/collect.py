"""Collect what the report of a finished run shows: images, subgroups, counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_rt.spec import ModelSpec
from hybrid_train.data.loader import ImageDataset
from hybrid_train.data.samples import Samples, subgroup_of
from hybrid_train.data.splits import Split
from hybrid_train.evaluation.bootstrap import auroc_interval
from hybrid_train.evaluation.metrics import auroc, averaged_classes
from hybrid_train.evaluation.reliability import softmax
from hybrid_train.posthoc.fit import Subset
from hybrid_train.report.page import GalleryItem, ReportData, write_report

GALLERY = 12  # of the right predictions, and of the wrong ones


def write_run_report(
    folder: Path,
    spec: ModelSpec,
    dataset: ImageDataset,
    split: Split,
    subsets: Mapping[str, Subset],
    *,
    results: Mapping[str, Mapping[str, Any]],
    history: Sequence[Mapping[str, Any]],
    command: str,
) -> None:
    """Write report.html into the run folder.

    Args:
        subsets: What the final network returns for the validation and the test subset.
        results: The metrics of each of these subsets.
        history: One row an epoch.
        command: The command that started the run.
    """
    samples = dataset.samples
    shown = "test" if "test" in results else "val"
    indices = split.subsets()[shown]
    probabilities = softmax(subsets[shown].logits / spec.temperature)
    report = ReportData(
        title=f"{samples.task} on {samples.origin}",
        command=command,
        spec=spec,
        history=history,
        metrics=results,
        logits={name: subset.logits for name, subset in subsets.items()},
        labels={name: subset.labels for name, subset in subsets.items()},
        counts={name: subset_counts(samples, subset) for name, subset in split.subsets().items()},
        gallery=gallery(dataset, indices, probabilities),
        subgroups=subgroups(samples, indices, probabilities),
        versions=spec.provenance.get("versions", {}),
        notes=[f"{n} rows dropped: {reason}" for reason, n in samples.dropped.items()],
    )
    write_report(folder, report)


def subset_counts(samples: Samples, indices: NDArray[np.int64]) -> dict[str, int]:
    """Return the number of images, of images by class, and of groups."""
    row = {"images": len(indices), **samples.counts(indices)}
    if samples.groups is not None:
        row[str(samples.group_column)] = len(set(samples.groups[indices].tolist()))
    return row


def gallery(
    dataset: ImageDataset, indices: NDArray[np.int64], probabilities: NDArray[Any]
) -> list[GalleryItem]:
    """Return the most probable wrong predictions, and right ones from all over the range."""
    samples = dataset.samples
    predicted, top = probabilities.argmax(1), probabilities.max(1)
    wrong = predicted != samples.labels[indices]
    order = np.argsort(-top, kind="stable")
    surest_wrong = [k for k in order if wrong[k]][:GALLERY]
    right = [k for k in order if not wrong[k]]
    spread = [right[i] for i in np.unique(np.linspace(0, len(right) - 1, GALLERY).astype(int))]
    return [
        GalleryItem(
            image=Image.fromarray(dataset[int(indices[k])][0]),
            name=str(samples.names[indices[k]]),
            truth=samples.classes[samples.labels[indices[k]]],
            predicted=samples.classes[predicted[k]],
            probability=float(top[k]),
        )
        for k in [*surest_wrong, *(spread if right else [])]
    ]


def subgroups(
    samples: Samples, indices: NDArray[np.int64], probabilities: NDArray[Any]
) -> list[dict[str, Any]]:
    """Return accuracy and AUROC by view, side, density, age and implant, if the data has them."""
    labels = samples.labels[indices]
    groups = None if samples.groups is None else samples.groups[indices]
    chosen = averaged_classes(probabilities, 1)
    rows = []
    for column, values in samples.columns.items():
        keys = np.array([subgroup_of(column, values[i]) for i in indices])
        for key in sorted(set(keys.tolist())):
            inside = keys == key
            subset, truth = probabilities[inside], labels[inside]
            patients = None if groups is None else groups[inside]
            rows.append(
                {
                    "subgroup": f"{column} {key}",
                    "images": int(inside.sum()),
                    "accuracy": float((subset.argmax(1) == truth).mean()),
                    "AUROC": auroc(subset, truth, 1),
                    "95% interval": auroc_interval(subset, truth, chosen, patients, 1000, 0),
                }
            )
    return rows
