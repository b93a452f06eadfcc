"""Samples: labelled images of any source.

Every source becomes one Samples: labels as class indices, groups (patients), and a function
that returns image i in a form that the runtime's loader accepts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.errors import UsageError

#: Folder names of a split.
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
#: Columns by which a model is measured, if the data has them.
SUBGROUP_COLUMNS = ("view", "laterality", "density", "age", "implant")
AGE_BANDS = ((0, 50), (50, 60), (60, 70), (70, 200))


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The columns of image, label and group; None finds a column by its usual name."""

    label: str | None = None
    group: str | None = None
    image: str | None = None
    #: The class for rows without a label; None drops them.
    null_label: str | None = None
    class_names: tuple[str, ...] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Labelled images: ``source(i)`` returns a path, bytes or a PIL image for load_pixels."""

    origin: str
    task: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    source: Callable[[int], Any]
    names: Sequence[str]
    group_column: str | None = None
    groups: NDArray[np.str_] | None = None
    #: "train", "val" or "test" for each, if the data has a split of its own.
    given_split: NDArray[np.str_] | None = None
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    #: Of each image's pixels, once they are decoded.
    checksums: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Samples:
        """Return some of the samples, in that order."""
        return replace(
            self,
            labels=self.labels[indices],
            source=Taken(self.source, tuple(indices.tolist())),
            names=[self.names[i] for i in indices],
            groups=None if self.groups is None else self.groups[indices],
            given_split=None if self.given_split is None else self.given_split[indices],
            columns={name: [values[i] for i in indices] for name, values in self.columns.items()},
            checksums=tuple(self.checksums[i] for i in indices) if self.checksums else (),
        )

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of names, labels, groups and decoded images."""
        digest = hashlib.sha256()
        groups = self.groups if self.groups is not None else [""] * len(self)
        for name, label, group in zip(self.names, self.labels, groups, strict=True):
            digest.update(f"{name}\0{label}\0{group}\n".encode())
        digest.update(np.array(self.checksums, np.uint32).tobytes())
        return digest.hexdigest()[:16]

    def counts(self, indices: NDArray[np.int64] | None = None) -> dict[str, int]:
        """Return the number of images of each class."""
        labels = self.labels if indices is None else self.labels[indices]
        return {name: int((labels == i).sum()) for i, name in enumerate(self.classes)}


@dataclass(frozen=True)
class Taken:
    """Some of a source's images; a class, so that decoding workers can unpickle it."""

    source: Callable[[int], Any]
    indices: tuple[int, ...]

    def __call__(self, index: int) -> Any:
        return self.source(self.indices[index])


def rename_classes(found: tuple[str, ...], names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the classes by their given names; raises UsageError for a wrong number."""
    if names is None:
        return found
    if len(names) != len(found):
        raise UsageError(
            f"--class-names has {len(names)} names ({', '.join(names)}); the data has "
            f"{len(found)} classes: {', '.join(found)}"
        )
    return names


def subgroup_of(column: str, value: Any) -> str:
    """Return the subgroup of a cell of a subgroup column; ages go into bands."""
    if value is None or value != value:
        return "unknown"
    if column == "age":
        low, high = next((b for b in AGE_BANDS if b[0] <= value < b[1]), AGE_BANDS[-1])
        return f"{low} to {high - 1}" if high < 200 else f"{low} and over"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
