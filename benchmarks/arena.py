"""Rows timed in turn, A B A B, and their results: quantiles, and ratios of pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import CUDA, EAGER, HEATMAPS, HINTED, PLAIN, ROWS, RUNTIME
from benchmarks.worker import RowError, Worker
from hybrid_export.parity.tolerances import TOLERANCES


@dataclass
class Result:
    """One row of one table. Times are seconds for a complete call with ``images`` images."""

    table: str
    row: str
    images: int
    times: list[float] = field(default_factory=list)
    #: Other row -> its times, each measured right before this row's.
    others: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    first_s: float = 0.0
    memory_bytes: int = 0
    file_bytes: int = 0
    error: str | None = None

    def quantile(self, q: float) -> float:
        """Return a quantile of the times, in seconds."""
        return float(np.quantile(self.times, q))

    @property
    def ratios(self) -> dict[str, float]:
        """Return other row -> how many times faster this row is, as the median of pairs."""
        return {
            other: float(np.median(np.asarray(times) / np.asarray(self.times)))
            for other, times in self.others.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it is written to results.json."""
        summary = {}
        if self.times:
            summary = {f"p{round(q * 100)}_ms": self.quantile(q) * 1e3 for q in (0.5, 0.9, 0.99)}
            summary["images_per_s"] = self.images / self.quantile(0.5)
        return {
            "table": self.table,
            "row": self.row,
            "images": self.images,
            "rounds": len(self.times),
            **summary,
            "faster_than": self.ratios,
            "parity": self.parity,
            "ran": self.facts,
            "first_prediction_s": self.first_s,
            "memory_bytes": self.memory_bytes,
            "file_bytes": self.file_bytes,
            "error": self.error,
        }


class Arena:
    """The workers of the rows, each loaded once, and the results so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reference = np.load(folder / "reference.npy")
        self.results: list[Result] = []
        self.extra: dict[str, Any] = {}
        self._workers: dict[str, Worker] = {}
        self._broken: dict[str, str] = {}

    def worker(self, row: str) -> Worker:
        """Return the row's process. Raises RowError if the row cannot be loaded."""
        if row in self._broken:
            raise RowError(self._broken[row])
        if row not in self._workers:
            try:
                self._workers[row] = Worker(row, self.folder)
            except RowError as err:
                self._broken[row] = str(err)
                raise
        return self._workers[row]

    def load_time(self, row: str) -> float:
        """Return the seconds from opening the model to the first prediction, in a new process."""
        with Worker(row, self.folder) as worker:
            return worker.load_s

    def keep_only(self, rows: Iterable[str]) -> None:
        """End the processes of all other rows, to free their memory."""
        keep = set(rows)
        for name in [n for n in self._workers if n not in keep]:
            self._workers.pop(name).close()

    def close(self) -> None:
        """End all processes."""
        self.keep_only(())

    def parity(self, row: str, kind: str = "pixels") -> dict[str, Any]:
        """Compare the row's logits with PyTorch fp32's, by the tolerances of the parity reports."""
        worker = self.worker(row)
        indices = list(range(4))
        together = np.asarray(worker.ask("logits", kind, indices))
        alone = np.concatenate([np.asarray(worker.ask("logits", kind, [i])) for i in indices])
        reference = self.reference[indices]
        gap = float(np.abs(together - reference).max())
        invariance = float(np.abs(together - alone).max())
        tolerance = TOLERANCES[ROWS[row].precision].logits_max_abs
        flips = int((together.argmax(1) != reference.argmax(1)).sum())
        return {
            "passed": bool(np.isfinite(together).all() and gap <= tolerance and flips == 0),
            "logits_max_abs": gap,
            "batch_invariance_max_abs": invariance,
            "tolerance": tolerance,
            "top1_flips": flips,
        }

    def start(self, table: str, row: str, images: int, baselines: Sequence[str]) -> Result:
        """Load the row and its baselines, check parity, and return a result without times."""
        self.keep_only({row, *baselines})
        worker = self.worker(row)
        result = Result(table, row, images, facts=worker.facts, first_s=worker.first_s)
        result.parity = self.parity(row)
        result.file_bytes = sum((self.folder / n).stat().st_size for n in ROWS[row].needs)
        self.results.append(result)
        return result


def baselines_of(table: str, row: str) -> list[str]:
    """Return the rows that a row of a table is timed against."""
    others = [EAGER, HINTED] if table == "offline" else [EAGER, RUNTIME, PLAIN]
    if table == "file to label":
        others = [EAGER]
    if row.endswith(HEATMAPS):
        others = [row.removesuffix(HEATMAPS)]
    elif ROWS[row].gpu:
        others = CUDA
    return [other for other in others if other != row]
