"""Facts and tables as Markdown, with nothing in a name that could become markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

UNKNOWN = "unknown: the checkpoint came without its run folder"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of dictionaries; a key of any of them is a column."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return "\n".join(
        [
            _row(map(text, columns)),
            _row("---" if i == 0 else "---:" for i in range(len(columns))),
            *(_row(text(number(row.get(key))) for key in columns) for row in rows),
        ]
    )


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Return such as "0.912 (0.850 to 0.960)"."""
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def number(value: Any) -> str:
    """Return four decimals for a float, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, (list, tuple)):
        return " to ".join(number(item) for item in value)
    return str(value)


def small(value: float | None) -> str | None:
    """Return an error or a cosine: six decimals, or a power of ten."""
    return None if value is None else f"{value:.6f}" if 0.1 < value <= 1 else f"{value:.1e}"


def text(value: str) -> str:
    """Return a name as Markdown: nothing in it breaks a table or becomes markup."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in value)
    return " ".join(escaped.split())


def facts(known: Mapping[str, Any]) -> str:
    """Return a list of facts; one that is None is unknown."""
    return "\n".join(
        f"- {key.replace('_', ' ')}: {UNKNOWN if value is None else text(str(value))}"
        for key, value in known.items()
    )
