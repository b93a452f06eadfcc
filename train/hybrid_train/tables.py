"""Samples from tables: parquet files, hub datasets and the built-in phantoms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_rt.errors import DataError, UsageError
from hybrid_train.data import SPLIT_FOLDERS, SUBGROUP_COLUMNS, DataOptions, Samples, rename_classes

LABEL_COLUMNS = ("cancer", "label", "labels", "class", "target")
IMAGE_COLUMNS = ("image", "img", "picture")
GROUP_COLUMNS = ("patient_id", "patient", "subject_id")


def open_parquet(files: Sequence[Path], origin: str, options: DataOptions) -> Samples:
    """Parquet files with a column of encoded pictures."""
    import datasets

    try:
        with quiet_datasets():
            table = datasets.load_dataset(
                "parquet", data_files=[str(f) for f in files], split="train"
            )
    except Exception as err:  # pyarrow and datasets raise kinds of their own for damaged files
        raise DataError(
            f"{origin} cannot be read as parquet ({type(err).__name__}: {last_line(err)}); "
            "copy it again"
        ) from err
    return open_table(table, origin, options)


def open_hub(name: str, options: DataOptions) -> Samples:
    """A dataset of the Hugging Face hub, by name; all its splits are taken together."""
    import datasets

    try:
        with quiet_datasets():
            splits = datasets.load_dataset(name)
    except Exception as err:  # offline, unknown or gated: the library's errors have no common root
        raise DataError(
            f"{name} cannot be had from the Hugging Face hub ({type(err).__name__}: "
            f"{last_line(err)}), and no folder of that name is here; download its parquet files "
            "where there is a network, and give their folder instead: "
            f"hybrid-train path/to/{name.split('/')[1]}"
        ) from err
    table = datasets.concatenate_datasets(list(splits.values()))
    parts = [SPLIT_FOLDERS.get(part, "") for part in splits]
    given = None
    if len(parts) > 1 and "train" in parts and all(parts):
        given = np.repeat(parts, [len(splits[part]) for part in splits])
    return open_table(table, name, options, given)


def open_table(table: Any, origin: str, options: DataOptions, given_split: Any = None) -> Samples:
    """A table of the ``datasets`` library; ``given_split`` names each row's part."""
    import datasets

    columns = table.column_names
    image = find_column("image", options.image, IMAGE_COLUMNS, columns, origin)
    label = find_column("label", options.label, LABEL_COLUMNS, columns, origin)
    group = options.group or next((c for c in GROUP_COLUMNS if c in columns), None)
    if group is not None and group not in columns:
        raise DataError(missing_column("group", group, columns, origin))
    if isinstance(table.features[image], datasets.Image):
        table = table.cast_column(image, datasets.Image(decode=False))
    kept, names = label_names(table, label, origin, options)
    found, labels = index_labels([n for n in names if n is not None], options)
    groups = read_groups(table, group, kept, origin) if group else None
    prefix = Path(origin).stem

    meta = table.select(kept) if len(kept) < len(table) else table
    return Samples(
        origin=origin,
        task=label,
        classes=display_names(label, found, options),
        labels=labels,
        source=TableSource(table, image, tuple(kept), prefix),
        names=[f"{prefix}-{row:06}" for row in kept],
        group_column=group,
        groups=groups,
        given_split=None if given_split is None else given_split[kept],
        columns={c: list(meta[c]) for c in SUBGROUP_COLUMNS if c in columns and c != label},
        dropped={f"{label} is null": len(table) - len(kept)} if len(kept) < len(table) else {},
    )


def open_phantoms(data: str, options: DataOptions) -> Samples:
    """The built-in synthetic mammograms: ``phantom`` or ``phantom:N`` for about N pictures."""
    from concurrent.futures import ThreadPoolExecutor

    from hybrid_train.phantom import parse_phantom

    patients = parse_phantom(data)
    workers = min(available_cores(), 8)
    bounds = np.linspace(0, patients, workers + 1).astype(int)
    make = partial(phantom_rows, seed=options.seed)
    if workers == 1 or patients < 8:
        parts = [make((0, patients))]
    else:
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(make, itertools.pairwise(bounds)))
    rows = [row for part in parts for row in part]
    label = options.label or "cancer"
    columns = list(rows[0])
    if label not in columns:
        raise DataError(missing_column("label", label, columns, data))
    values = [label_text(row[label]) for row in rows]
    kept = [i for i, v in enumerate(values) if v is not None or options.null_label is not None]
    names = [values[i] if values[i] is not None else options.null_label for i in kept]
    found, labels = index_labels([n for n in names if n is not None], options)
    group = options.group or "patient_id"
    if group not in columns:
        raise DataError(missing_column("group", group, columns, data))
    return Samples(
        origin=data,
        task=label,
        classes=display_names(label, found, options),
        labels=labels,
        source=[rows[i]["image"] for i in kept].__getitem__,
        names=[
            f"phantom-{i:05}-{rows[i]['patient_id']}-{rows[i]['laterality']}-{rows[i]['view']}"
            for i in kept
        ],
        group_column=group,
        groups=np.array([str(rows[i][group]) for i in kept]),
        columns={
            c: [rows[i][c] for i in kept] for c in SUBGROUP_COLUMNS if c in columns and c != label
        },
        dropped={f"{label} is null": len(rows) - len(kept)} if len(kept) < len(rows) else {},
    )


def phantom_rows(bounds: tuple[int, int], *, seed: int) -> list[dict[str, Any]]:
    """Rows of the patients from bounds[0] up to bounds[1]; made in a thread."""
    from hybrid_train.phantom import generate

    start, stop = (int(b) for b in bounds)
    return list(generate(stop - start, seed=seed, start=start))


def label_names(
    table: Any, label: str, origin: str, options: DataOptions
) -> tuple[list[int], list[str | None]]:
    """The rows that are kept, and the label of each as text."""
    import datasets

    feature = table.features[label]
    if isinstance(feature, datasets.ClassLabel):
        values = [None if v is None or v < 0 else feature.int2str(v) for v in table[label]]
    else:
        values = [label_text(v) for v in table[label]]
    kept = [i for i, v in enumerate(values) if v is not None or options.null_label is not None]
    if not kept:
        raise DataError(f"{origin} has no row with a {label!r}: all {len(values)} are null")
    names = [values[i] if values[i] is not None else options.null_label for i in kept]
    distinct = len(set(names))
    if distinct > 1000 or (distinct > 50 and distinct > len(kept) / 2):
        raise DataError(
            f"{origin} has {distinct} values of {label!r} in {len(kept)} rows; expected a column "
            f"of classes: {', '.join(table.column_names)}"
        )
    return kept, names


def label_text(value: Any) -> str | None:
    """A cell as a class name: 1.0 and 1 are "1", None and NaN are no label."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return None
        return str(int(value)) if float(value).is_integer() else str(float(value))
    text = str(value).strip()
    return text or None


def index_labels(names: list[str], options: DataOptions) -> tuple[tuple[str, ...], Any]:
    """Class names in order (numbers by value, the null class first) and each row's index."""

    def order(name: str) -> tuple[int, float, str]:
        if name == options.null_label:
            return (0, 0.0, name)
        try:
            return (1, float(name), name)
        except ValueError:
            return (2, 0.0, name)

    found = tuple(sorted(set(names), key=order))
    index = {name: i for i, name in enumerate(found)}
    return found, np.array([index[name] for name in names], np.int64)


def display_names(label: str, found: tuple[str, ...], options: DataOptions) -> tuple[str, ...]:
    """0 and 1 of a finding's column read better as "no cancer" and "cancer"."""
    if options.class_names is None and found == ("0", "1") and label not in LABEL_COLUMNS[1:]:
        return (f"no {label}", label)
    return rename_classes(found, options.class_names)


def read_groups(table: Any, group: str, kept: list[int], origin: str) -> Any:
    values = table[group]
    groups = [label_text(values[i]) for i in kept]
    nulls = sum(g is None for g in groups)
    if nulls:
        raise DataError(
            f"{origin} has {nulls} rows without a {group!r}: they could be on both sides of the "
            "split; fill the column, drop those rows, or choose another with --group"
        )
    return np.array(groups)


@dataclass(frozen=True)
class TableSource:
    """Picture i of the kept rows; a class, so that decoding workers can be given it."""

    table: Any
    image: str
    kept: tuple[int, ...]
    prefix: str

    def __call__(self, index: int) -> Any:
        row = self.kept[index]
        return encoded_picture(self.table[row][self.image], f"{self.prefix} row {row}")


def encoded_picture(cell: Any, name: str) -> Any:
    """What a cell of an image column holds: bytes, or the path of a file."""
    if isinstance(cell, dict):
        if cell.get("bytes") is not None:
            return cell["bytes"]
        if cell.get("path"):
            return Path(cell["path"])
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, str):
        return Path(cell)
    raise DataError(f"{name} has no picture, but {type(cell).__name__}; expected encoded bytes")


def find_column(
    kind: str, asked: str | None, usual: Sequence[str], columns: Sequence[str], origin: str
) -> str:
    if asked is not None:
        if asked not in columns:
            raise DataError(missing_column(kind, asked, columns, origin))
        return asked
    for name in usual:
        if name in columns:
            return name
    raise UsageError(f"{origin} has the columns {', '.join(columns)}; name one with --{kind}")


def missing_column(kind: str, asked: str, columns: Sequence[str], origin: str) -> str:
    return f"{origin} has no {kind} column {asked!r}; it has {', '.join(columns)}"


def last_line(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (lines[-1] if lines else type(err).__name__)[:200]


def available_cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def quiet_datasets() -> Any:
    """The library's progress bars off within a block; the user's setting returns after it."""
    import contextlib

    from datasets.utils import logging

    @contextlib.contextmanager
    def quiet() -> Any:
        was = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            if was:
                logging.enable_progress_bar()

    return quiet()
