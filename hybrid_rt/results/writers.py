"""Predictions as rows: CSV, JSON lines, JSON, HTML and a table for the terminal.

Each function takes predictions and errors mixed, in order; an error is a row of its own with its
message in the column ``error``.
"""

from __future__ import annotations

import csv
import html
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hybrid_rt.files import atomic_path
from hybrid_rt.results.prediction import Prediction, PredictionError
from hybrid_rt.spec import ModelSpec

#: Columns that rows have only if they were asked for or the model has them.
OPTIONAL = ("decision", "prediction_set", "ood_score", "is_ood")

_TABLE_CLASSES = 6  # more classes than this show as the three most probable


def to_row(item: Prediction | PredictionError) -> dict[str, Any]:
    """Return flat columns: source, label, probability, p_<class> for each class, OPTIONAL, error.

    The labels of a set are joined by " | ". Label and probability of an abstention are None.
    """
    if isinstance(item, PredictionError):
        return item.to_dict()
    row: dict[str, Any] = {
        "source": item.source,
        "label": item.label,
        "probability": item.probability,
        **{f"p_{name}": value for name, value in item.probabilities.items()},
    }
    if item.decision is not None:
        row["decision"] = str(item.decision)
    if item.prediction_set is not None:
        row["prediction_set"] = " | ".join(item.prediction_set)
    if item.ood_score is not None:
        row |= {"ood_score": item.ood_score, "is_ood": str(item.is_ood).lower()}
    return row


def csv_lines(
    items: Iterable[Prediction | PredictionError],
    spec: ModelSpec | None = None,
    *,
    optional: Sequence[str] | None = None,
) -> Iterator[str]:
    """Yield CSV (RFC 4180) with a header, a line at a time.

    With a ``spec`` each line is yielded at once; without one the columns are those of all items.
    ``optional`` are those of OPTIONAL that the rows have, by default what the spec implies.
    """
    rows: Iterable[dict[str, Any]] = map(to_row, items)
    if spec is None:
        rows = list(rows)
        columns = _columns(rows)
    else:
        columns = ["source", "label", "probability", *(f"p_{name}" for name in spec.classes)]
        if optional is None:
            optional = ["decision"] * (spec.operating_point is not None)
        columns += [name for name in OPTIONAL if name in optional] + ["error"]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns or ["source"], restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow(row)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def jsonl_lines(
    items: Iterable[Prediction | PredictionError], spec: ModelSpec | None = None
) -> Iterator[str]:
    """Yield one JSON object a line."""
    for item in items:
        yield json.dumps(item.to_dict(), ensure_ascii=False) + "\n"


def json_lines(
    items: Iterable[Prediction | PredictionError], spec: ModelSpec | None = None
) -> Iterator[str]:
    """Yield a JSON list, an item a line."""
    separator = "[\n  "
    for item in items:
        yield separator + json.dumps(item.to_dict(), ensure_ascii=False)
        separator = ",\n  "
    yield "[]\n" if separator.startswith("[") else "\n]\n"


def text_lines(
    items: Iterable[Prediction | PredictionError], spec: ModelSpec | None = None
) -> Iterator[str]:
    """Yield a table with aligned columns; all rows are held to find the widths."""
    rows = [_text_row(item) for item in items]
    columns = _columns(rows)
    table = [columns, *([row.get(name, "") for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    table.insert(1, ["-" * width for width in widths])
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip() + "\n"


def write_text(lines: Iterable[str], path: str | os.PathLike[str] | None) -> str:
    """Return the lines as one text; also write it to ``path``, completely or not at all."""
    text = "".join(lines)
    if path is not None:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    return text


def to_html(items: Sequence[Prediction | PredictionError], limit: int = 100) -> str:
    """Return an HTML table of the first ``limit`` rows, for notebooks."""
    rows = [_text_row(item) for item in items[:limit]]
    columns = _columns(rows)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(row.get(n, ''))}</td>" for n in columns) + "</tr>"
        for row in rows
    )
    more = f"<p>… {len(items) - limit} more</p>" if len(items) > limit else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _text_row(item: Prediction | PredictionError) -> dict[str, str]:
    if isinstance(item, PredictionError):
        message = str(item.error).removeprefix(f"{item.source}: ")
        return {"image": item.source, "label": "error", "error": message}
    row = {"image": item.source, "label": item.label or "abstained", "probability": ""}
    if item.probability is not None:
        row["probability"] = f"{item.probability:.4f}"
    if item.decision is not None:
        row["decision"] = str(item.decision)
    if item.prediction_set is not None:
        row["prediction set"] = "{" + ", ".join(item.prediction_set) + "}"
    if item.ood_score is not None:
        row["ood_score"] = f"{item.ood_score:.2f}" + (" (OOD)" if item.is_ood else "")
    if len(item.probabilities) <= _TABLE_CLASSES:
        row |= {f"p({name})": f"{value:.4f}" for name, value in item.probabilities.items()}
    else:
        row["top 3"] = ", ".join(f"{name} {value:.3f}" for name, value in item.top(3))
    return row


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns of all rows; those of predictions, which have more, come before ``error``."""
    columns: dict[str, None] = {}
    for row in sorted(rows, key=len, reverse=True):
        columns.update(dict.fromkeys(row))
    return list(columns)
