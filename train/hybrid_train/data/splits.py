"""Split samples into train, val and test by patient, with equal shares of the classes."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.errors import DataError
from hybrid_train.data.samples import Samples
from hybrid_train.provenance import write_json

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Indices of a Samples; ``test`` may be empty."""

    train: Indices
    val: Indices
    test: Indices

    def subsets(self) -> dict[str, Indices]:
        """Return the indices by subset name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def make_split(
    samples: Samples, *, val_fraction: float = 0.15, test_fraction: float = 0.15, seed: int = 0
) -> Split:
    """Return the data's own split, else one by group, else one by image; stratified.

    Raises:
        DataError: A subset would be empty, or training would miss a class.
    """
    everything = np.arange(len(samples))
    if samples.given_split is not None:
        subsets = {n: everything[samples.given_split == n] for n in ("train", "val", "test")}
        if not len(subsets["val"]):
            subsets["train"], subsets["val"] = take_subset(
                samples, subsets["train"], val_fraction, seed
            )
    else:
        rest, test = take_subset(samples, everything, test_fraction, seed)
        train, val = take_subset(samples, rest, val_fraction / (1 - test_fraction), seed + 1)
        subsets = {"train": train, "val": val, "test": test}
    split = Split(**subsets)
    check_split(samples, split)
    return split


def take_subset(
    samples: Samples, indices: Indices, fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Return (rest, subset): about ``fraction`` of the images, complete groups, stratified.

    The subset is the best fold of scikit-learn's StratifiedGroupKFold (StratifiedKFold without
    groups).
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if fraction <= 0:
        return indices, indices[:0]
    folds = max(2, round(1 / fraction))
    labels = samples.labels[indices]
    groups = None if samples.groups is None else samples.groups[indices]
    units = len(indices) if groups is None else len(set(groups.tolist()))
    if units < folds:
        what = "images" if groups is None else f"values of {samples.group_column}"
        raise DataError(
            f"{samples.origin} has {units} {what}; a split of {fraction:.0%} needs {folds} or more"
        )
    if np.bincount(labels).max() < folds:
        raise DataError(
            f"{samples.origin} has fewer than {folds} images of each class of {samples.task!r}; "
            f"a split of {fraction:.0%} needs more: is that the label column?"
        )
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(n_splits=folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class rarer than the folds is reported by check_split in our own words.
        warnings.simplefilter("ignore", UserWarning)
        candidates = list(splitter.split(np.zeros(len(labels)), labels, groups))
    rest, subset = min(candidates, key=lambda pair: imbalance(labels, pair[1], fraction))
    return indices[rest], indices[subset]


def imbalance(labels: NDArray[np.int64], subset: Indices, fraction: float) -> float:
    """Return the relative distance of the classes' counts from ``fraction`` of all."""
    total = np.bincount(labels).astype(float)
    taken = np.bincount(labels[subset], minlength=len(total))
    wanted = total * fraction
    return float((np.abs(taken - wanted) / np.maximum(wanted, 1)).sum())


def check_split(samples: Samples, split: Split) -> None:
    """Raise DataError for an empty subset, a missing class, or a group on two sides."""
    for name in ("train", "val"):
        if not len(split.subsets()[name]):
            raise DataError(f"{samples.origin} leaves no image for {name}")
    present = set(samples.labels[split.train].tolist())
    for index, label in enumerate(samples.classes):
        if index not in present and (samples.labels == index).any():
            raise DataError(
                f"class {label!r} has {samples.counts()[label]} images, none of which fell into "
                "the training subset; add some, or drop the class"
            )
    if samples.given_split is None and shared_groups(samples, split):
        raise DataError(f"the split has a {samples.group_column} on two sides; please report this")


def shared_groups(samples: Samples, split: Split) -> set[str]:
    """Return the groups on two sides; only a split of the data itself can have some."""
    if samples.groups is None:
        return set()
    train, val, test = (set(samples.groups[subset].tolist()) for subset in split.subsets().values())
    return (train & val) | (train & test) | (val & test)


def warnings_of(samples: Samples, split: Split) -> list[str]:
    """Return warnings about metrics on this split."""
    notes = []
    shared = shared_groups(samples, split)
    if shared:
        notes.append(
            f"{len(shared)} {samples.group_column} stand on two sides of the data's own split: "
            "its metrics are too good"
        )
    for name, subset in split.subsets().items():
        absent = [c for c, n in samples.counts(subset).items() if n == 0] if len(subset) else []
        if absent and name != "train":
            notes.append(f"{name} has no image of {', '.join(absent)}")
    return notes


def save_split(path: Path, samples: Samples, split: Split) -> None:
    """Write the split by image name, with the data's fingerprint."""
    names = {k: [samples.names[i] for i in subset] for k, subset in split.subsets().items()}
    data = {"fingerprint": samples.fingerprint(), "group": samples.group_column, **names}
    write_json(path, data)


def load_split(path: Path, samples: Samples) -> Split:
    """Load the split of an earlier run; raises DataError if the data has changed."""
    try:
        data = json.loads(path.read_text())
        fingerprint = data["fingerprint"]
        index = {name: i for i, name in enumerate(samples.names)}
        subsets = {
            k: np.array([index[n] for n in data[k]], np.int64) for k in Split.__annotations__
        }
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(f"{path} is not the split of this data ({err!r})") from err
    if fingerprint != samples.fingerprint():
        raise DataError(
            f"{path} was made for data {fingerprint}, this is {samples.fingerprint()}: the data "
            "changed since the run began; start a new run"
        )
    return Split(**subsets)
