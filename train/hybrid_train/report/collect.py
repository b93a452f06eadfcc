"""What of a finished run goes into its report: images, subgroups, counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_rt.spec import ModelSpec
from hybrid_train.config import RunOptions
from hybrid_train.data.samples import Samples
from hybrid_train.data.splits import Split
from hybrid_train.evaluation.bootstrap import auroc_interval
from hybrid_train.evaluation.metrics import auroc, averaged_classes
from hybrid_train.evaluation.reliability import softmax
from hybrid_train.report.page import GalleryItem, ReportData, write_report

if TYPE_CHECKING:
    from hybrid_train.loop.trainer import Trainer

GALLERY = 12  # of the right predictions, and of the wrong ones
AGE_BANDS = ((0, 50), (50, 60), (60, 70), (70, 200))


def write_run_report(
    trainer: Trainer,
    spec: ModelSpec,
    samples: Samples,
    split: Split,
    logits: dict[str, NDArray[Any]],
    labels: dict[str, NDArray[Any]],
    results: dict[str, Any],
    options: RunOptions,
) -> None:
    """Write report.html into the run folder."""
    shown = "test" if "test" in results else "val"
    indices = split.subsets()[shown]
    probabilities = softmax(logits[shown] / spec.temperature)
    report = ReportData(
        title=f"{samples.task} on {samples.origin}",
        command=options.command,
        spec=spec,
        history=trainer.progress.history,
        metrics=results,
        logits=logits,
        labels=labels,
        counts={name: subset_counts(samples, subset) for name, subset in split.subsets().items()},
        gallery=gallery(trainer, samples, indices, probabilities),
        subgroups=subgroups(samples, indices, probabilities),
        versions=spec.provenance.get("versions", {}),
        notes=[f"{n} rows dropped: {reason}" for reason, n in samples.dropped.items()],
    )
    write_report(options.output, report)


def subset_counts(samples: Samples, indices: NDArray[np.int64]) -> dict[str, int]:
    row = {"images": len(indices), **samples.counts(indices)}
    if samples.groups is not None:
        row[str(samples.group_column)] = len(set(samples.groups[indices].tolist()))
    return row


def gallery(
    trainer: Trainer,
    samples: Samples,
    indices: NDArray[np.int64],
    probabilities: NDArray[Any],
) -> list[GalleryItem]:
    """The most probable wrong predictions, and right predictions from all over the range."""
    predicted, top = probabilities.argmax(1), probabilities.max(1)
    wrong = predicted != samples.labels[indices]
    order = np.argsort(-top, kind="stable")
    surest_wrong = [k for k in order if wrong[k]][:GALLERY]
    right = [k for k in order if not wrong[k]]
    spread = [right[i] for i in np.unique(np.linspace(0, len(right) - 1, GALLERY).astype(int))]
    return [
        GalleryItem(
            image=Image.fromarray(trainer.dataset[int(indices[k])][0]),
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
    """Accuracy and AUROC by view, side, density, age and implant, where the data has them."""
    labels = samples.labels[indices]
    groups = None if samples.groups is None else samples.groups[indices]
    chosen = averaged_classes(probabilities, 1)
    rows = []
    for column, values in samples.columns.items():
        keys = np.array([band(column, values[i]) for i in indices])
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


def band(column: str, value: Any) -> str:
    """A cell as the name of its subgroup; ages go into bands."""
    if value is None or value != value:
        return "unknown"
    if column == "age":
        low, high = next((b for b in AGE_BANDS if b[0] <= value < b[1]), AGE_BANDS[-1])
        return f"{low} to {high - 1}" if high < 200 else f"{low} and over"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
