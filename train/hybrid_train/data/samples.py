"""Labelled pictures from anywhere: class folders, parquet, the Hugging Face hub, phantoms.

    samples = open_data("hongrui/mammogram_v_1", DataOptions(label="cancer"))

Every source becomes one Samples: labels as class indices, groups (patients), and a way to get
picture i as the runtime's image loader takes it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.errors import DataError, UsageError
from hybrid_rt.images.sources import PICTURE_SUFFIXES

#: Folder names that mean a split of the data.
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
#: Columns worth a subgroup table, where they are there.
SUBGROUP_COLUMNS = ("view", "laterality", "density", "age", "implant")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What of a table is the picture, the label and the group; None finds it by its usual name."""

    label: str | None = None
    group: str | None = None
    image: str | None = None
    #: The class for rows without a label; None drops them.
    null_label: str | None = None
    class_names: tuple[str, ...] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Labelled pictures: ``source(i)`` gives a path, bytes or a PIL image for load_pixels."""

    origin: str
    task: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    source: Callable[[int], Any]
    names: Sequence[str]
    group_column: str | None = None
    groups: NDArray[np.str_] | None = None
    #: "train", "val" or "test" for each, where the data says so.
    given_split: NDArray[np.str_] | None = None
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    #: Of each picture's pixels, once they were decoded.
    checksums: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Samples:
        """Some of the samples, in that order."""
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
        """Changes when names, labels, groups or decoded pictures do; 16 hexadecimal digits."""
        digest = hashlib.sha256()
        groups = self.groups if self.groups is not None else [""] * len(self)
        for name, label, group in zip(self.names, self.labels, groups, strict=True):
            digest.update(f"{name}\0{label}\0{group}\n".encode())
        digest.update(np.array(self.checksums, np.uint32).tobytes())
        return digest.hexdigest()[:16]

    def counts(self, indices: NDArray[np.int64] | None = None) -> dict[str, int]:
        """Pictures of each class."""
        labels = self.labels if indices is None else self.labels[indices]
        return {name: int((labels == i).sum()) for i, name in enumerate(self.classes)}


@dataclass(frozen=True)
class Taken:
    """Some of a source's pictures; a class, so that decoding workers can be given it."""

    source: Callable[[int], Any]
    indices: tuple[int, ...]

    def __call__(self, index: int) -> Any:
        return self.source(self.indices[index])


def open_data(data: str, options: DataOptions) -> Samples:
    """Open DATA as the command line takes it. Raises DataError that says what was found."""
    from hybrid_train.data import tables

    path = Path(data)
    if data == "phantom" or data.startswith("phantom:"):
        samples = tables.open_phantoms(data, options)
    elif path.is_dir():
        parquet = sorted(path.rglob("*.parquet"))
        samples = (
            tables.open_parquet(parquet, data, options) if parquet else open_folder(path, options)
        )
    elif path.is_file():
        if path.suffix != ".parquet":
            raise DataError(
                f"{data} is a {path.suffix or 'plain'} file; expected a parquet file, a folder of "
                "class folders, a hub name or phantom"
            )
        samples = tables.open_parquet([path], data, options)
    elif data.count("/") == 1 and not data.startswith((".", "/")):
        samples = tables.open_hub(data, options)
    else:
        raise DataError(
            f"{data} is not there; expected a folder of class folders, a parquet file or a folder "
            "of them, a hub name such as hongrui/mammogram_v_1, or phantom"
        )
    return check(samples)


def open_folder(root: Path, options: DataOptions) -> Samples:
    """One folder a class, or train/val/test folders of those."""
    if options.label or options.group or options.null_label:
        raise UsageError(
            "--label, --group and --null-label are for tables; a folder's classes are the names "
            "of its sub-folders"
        )
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    split_of = {p: SPLIT_FOLDERS.get(p.name.lower()) for p in folders}
    has_splits = bool(folders) and all(split_of.values())
    entries: list[tuple[Path, str, str]] = []  # file, class, split
    for folder in folders:
        split = split_of[folder] or "" if has_splits else ""
        class_folders = (
            [p for p in sorted(folder.iterdir()) if p.is_dir()] if has_splits else [folder]
        )
        for class_folder in class_folders:
            entries += [(f, class_folder.name, split) for f in pictures_in(class_folder)]
    if not entries:
        raise DataError(
            f"{root} holds no pictures in sub-folders; expected {root}/CLASS/picture.png, "
            f"{root}/train/CLASS/picture.png, or parquet files"
        )
    found = tuple(sorted({name for _, name, _ in entries}))
    if has_splits and "train" not in {split for _, _, split in entries}:
        raise DataError(f"{root} has {', '.join(p.name for p in folders)} but no train folder")
    classes = rename_classes(found, options.class_names)
    return Samples(
        origin=str(root),
        task=root.name,
        classes=classes,
        labels=np.array([found.index(name) for _, name, _ in entries], np.int64),
        source=[file for file, _, _ in entries].__getitem__,
        names=[str(file.relative_to(root)) for file, _, _ in entries],
        given_split=np.array([split for _, _, split in entries]) if has_splits else None,
    )


def pictures_in(folder: Path) -> list[Path]:
    """Picture files below a folder, sorted, hidden ones left out."""
    return [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".") and p.suffix.lower() in PICTURE_SUFFIXES
    ]


def rename_classes(found: tuple[str, ...], names: tuple[str, ...] | None) -> tuple[str, ...]:
    if names is None:
        return found
    if len(names) != len(found):
        raise UsageError(
            f"--class-names gives {len(names)} names ({', '.join(names)}); the data has "
            f"{len(found)} classes: {', '.join(found)}"
        )
    return names


def check(samples: Samples) -> Samples:
    """The samples, if they can be learned from."""
    present = Counter(samples.labels.tolist())
    if len(present) < 2:
        only = samples.classes[next(iter(present))] if present else "none"
        raise DataError(
            f"{samples.origin} has one class only for {samples.task!r}: {only} "
            f"({len(samples)} pictures); expected two or more"
        )
    return samples
