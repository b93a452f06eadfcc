"""Make Samples of a table's columns: choose label and group, and handle nulls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.errors import DataError, UsageError
from hybrid_train.data.samples import SUBGROUP_COLUMNS, DataOptions, Samples, Taken, rename_classes

LABEL_COLUMNS = ("cancer", "label", "labels", "class", "target")
GROUP_COLUMNS = ("patient_id", "patient", "subject_id")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of any origin.

    ``read`` returns a column's cells. ``source`` and ``name`` return a row's image and name.
    """

    origin: str
    columns: Sequence[str]
    read: Callable[[str], Sequence[Any]]
    source: Callable[[int], Any]
    name: Callable[[int], str]
    #: "train", "val" or "test" for each row, if the data has a split of its own.
    given_split: NDArray[np.str_] | None = None


def samples_of(table: Table, options: DataOptions) -> Samples:
    """Return the table's labelled rows; DataError and UsageError list the columns."""
    columns = table.columns
    label = find_column("label", options.label, LABEL_COLUMNS, columns, table.origin)
    group = options.group or next((c for c in GROUP_COLUMNS if c in columns), None)
    if group is not None and group not in columns:
        raise DataError(missing_column("group", group, columns, table.origin))
    if group == label:
        raise UsageError(
            f"{label!r} is the label and the group, which stays on one side of the split; name "
            "another --label or --group"
        )
    every_name = with_null_label([label_text(v) for v in table.read(label)], label, options)
    kept = [row for row, name in enumerate(every_name) if name is not None]
    names = [name for name in every_name if name is not None]
    check_labels(names, len(every_name), label, table)
    found, labels = index_labels(names, options)
    dropped = len(every_name) - len(kept)
    subgroups = [c for c in SUBGROUP_COLUMNS if c in columns and c != label]
    cells = {column: table.read(column) for column in subgroups}
    return Samples(
        origin=table.origin,
        task=label,
        classes=display_names(label, found, options),
        labels=labels,
        source=Taken(table.source, tuple(kept)),
        names=[table.name(row) for row in kept],
        group_column=group,
        groups=None if group is None else read_groups(table, group, kept),
        given_split=None if table.given_split is None else table.given_split[kept],
        columns={column: [values[row] for row in kept] for column, values in cells.items()},
        dropped={f"{label} is null": dropped} if dropped else {},
    )


def with_null_label(names: list[str | None], label: str, options: DataOptions) -> list[str | None]:
    """Return the labels with --null-label for nulls; raises UsageError for a known class."""
    null_label = options.null_label
    if null_label is None:
        return names
    if not null_label.strip() or null_label in names:
        raise UsageError(
            f"--null-label {null_label!r} "
            + (f"is a class of {label!r} already" if null_label.strip() else "is empty")
            + "; expected a name of its own, such as 'not assessed'"
        )
    return [null_label if name is None else name for name in names]


def check_labels(names: list[str], rows: int, label: str, table: Table) -> None:
    """Raise DataError if the column has no labels, or as many as rows."""
    if not names:
        raise DataError(f"{table.origin} has no row with a {label!r}: all {rows} are null")
    distinct = len(set(names))
    if distinct > 1000 or (distinct > 50 and distinct > len(names) / 2):
        raise DataError(
            f"{table.origin} has {distinct} values of {label!r} in {len(names)} rows; expected a "
            f"column of classes: {', '.join(table.columns)}"
        )


def label_text(value: Any) -> str | None:
    """Return a cell as a class name: 1.0 and 1 are "1"; None and NaN are None."""
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


def index_labels(
    names: list[str], options: DataOptions
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the class names in order, and each row's index.

    The null class is first; numbers are ordered by value, before other names.
    """

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
    """Return the classes by the names to show: "no cancer" and "cancer" for 0 and 1."""
    if options.class_names is None and found == ("0", "1") and label not in LABEL_COLUMNS[1:]:
        return (f"no {label}", label)
    return rename_classes(found, options.class_names)


def read_groups(table: Table, group: str, kept: list[int]) -> NDArray[np.str_]:
    """Return the group of each kept row; raises DataError for nulls."""
    values = table.read(group)
    groups = [label_text(values[row]) for row in kept]
    nulls = sum(g is None for g in groups)
    if nulls:
        raise DataError(
            f"{table.origin} has {nulls} rows without a {group!r}: they could be on both sides of "
            "the split; fill the column, drop those rows, or choose another with --group"
        )
    return np.array(groups)


def find_column(
    kind: str, asked: str | None, usual: Sequence[str], columns: Sequence[str], origin: str
) -> str:
    """Return the column that was asked for, or the first of the usual ones."""
    if asked is not None:
        if asked not in columns:
            raise DataError(missing_column(kind, asked, columns, origin))
        return asked
    for name in usual:
        if name in columns:
            return name
    option = {"image": "image-column"}.get(kind, kind)
    raise UsageError(f"{origin} has the columns {', '.join(columns)}; name one with --{option}")


def missing_column(kind: str, asked: str, columns: Sequence[str], origin: str) -> str:
    """Return the message for a missing column."""
    return f"{origin} has no {kind} column {asked!r}; it has {', '.join(columns)}"
