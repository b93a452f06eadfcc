"""Open labelled images: class folders, parquet, the Hugging Face hub, phantoms.

samples = open_data("hongrui/mammogram_v_1", DataOptions(label="cancer"))
"""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_rt.errors import DataError, UsageError
from hybrid_rt.images.sources import IMAGE_SUFFIXES
from hybrid_train.data.columns import Table, find_column, samples_of
from hybrid_train.data.loader import available_cores
from hybrid_train.data.samples import SPLIT_FOLDERS, DataOptions, Samples, rename_classes
from hybrid_train.data.tables import IMAGE_COLUMNS, open_hub, open_parquet
from hybrid_train.phantom.generate import generate, parse_phantom


def open_data(data: str, options: DataOptions) -> Samples:
    """Open DATA of the command line; DataError names what was found."""
    path = Path(data)
    if data == "phantom" or data.startswith("phantom:"):
        samples = open_phantoms(data, options)
    elif path.is_dir():
        parquet = sorted(path.rglob("*.parquet"))
        samples = open_parquet(parquet, data, options) if parquet else open_folder(path, options)
    elif path.is_file():
        if path.suffix != ".parquet":
            raise DataError(
                f"{data} is a {path.suffix or 'plain'} file; expected a parquet file, a folder of "
                "class folders, a hub name or phantom"
            )
        samples = open_parquet([path], data, options)
    elif data.count("/") == 1 and not data.startswith((".", "/")):
        samples = open_hub(data, options)
    else:
        raise DataError(
            f"{data} does not exist; expected a folder of class folders, a parquet file or a "
            "folder of them, a hub name such as hongrui/mammogram_v_1, or phantom"
        )
    return check(samples)


def open_folder(root: Path, options: DataOptions) -> Samples:
    """Open a folder with a folder for each class, or train, val and test folders of those."""
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
            entries += [(f, class_folder.name, split) for f in images_in(class_folder)]
    if not entries:
        raise DataError(
            f"{root} holds no images in sub-folders; expected {root}/CLASS/image.png, "
            f"{root}/train/CLASS/image.png, or parquet files"
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


def images_in(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted, without hidden ones."""
    return [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".") and p.suffix.lower() in IMAGE_SUFFIXES
    ]


def check(samples: Samples) -> Samples:
    """Return the samples; raises DataError if they have fewer than two classes."""
    present = Counter(samples.labels.tolist())
    if len(present) < 2:
        only = samples.classes[next(iter(present))] if present else "none"
        raise DataError(
            f"{samples.origin} has one class only for {samples.task!r}: {only} "
            f"({len(samples)} images); expected two or more"
        )
    return samples


def open_phantoms(data: str, options: DataOptions) -> Samples:
    """Make the synthetic mammograms of ``phantom`` or ``phantom:N``, about N images."""
    from concurrent.futures import ThreadPoolExecutor

    patients = parse_phantom(data)
    workers = min(available_cores(), 8)
    bounds = np.linspace(0, patients, workers + 1).astype(int)
    make = partial(phantom_rows, seed=options.seed)
    if workers == 1 or patients < 8:
        chunks = [make((0, patients))]
    else:
        with ThreadPoolExecutor(workers) as pool:
            chunks = list(pool.map(make, itertools.pairwise(bounds)))
    rows = [row for chunk in chunks for row in chunk]
    image = find_column("image", options.image, IMAGE_COLUMNS, list(rows[0]), data)

    def name(row: int) -> str:
        return "phantom-{:05}-{patient_id}-{laterality}-{view}".format(row, **rows[row])

    table = Table(
        origin=data,
        columns=list(rows[0]),
        read=lambda column: [row[column] for row in rows],
        source=[row[image] for row in rows].__getitem__,
        name=name,
    )
    return samples_of(table, options)


def phantom_rows(bounds: tuple[int, int], *, seed: int) -> list[dict[str, Any]]:
    """Return the rows of the patients from bounds[0] up to bounds[1]."""
    start, stop = (int(b) for b in bounds)
    return list(generate(stop - start, seed=seed, start=start))
