"""The record of a run folder: measures, settings and predictions of its checkpoint."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_rt.spec import ModelSpec
from hybrid_train.report.predictions import PREDICTIONS


@dataclass(frozen=True, kw_only=True)
class Record:
    """Empty fields are unknown. ``predictions`` are the rows of predictions.csv, as text."""

    metrics: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    predictions: Sequence[Mapping[str, str]] = ()

    @property
    def shown(self) -> str | None:
        """The subset that numbers are reported on: test, or validation if there is no test."""
        return next((subset for subset in ("test", "val") if subset in self.metrics), None)


def read_record(folder: Path, spec: ModelSpec) -> Record:
    """Return the record of a run folder; an empty one if it is not this checkpoint's run."""
    metrics = _json(folder / "metrics.json")
    fingerprint = spec.provenance.get("data_fingerprint")
    if fingerprint is None or metrics.get("data", {}).get("fingerprint") != fingerprint:
        return Record()
    try:
        with (folder / PREDICTIONS).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        rows = []
    needed = {"split", "label", "group", *(f"p_{name}" for name in spec.classes)}
    if rows and not needed <= set(rows[0]):
        rows = []
    return Record(metrics=metrics, config=_json(folder / "config.json"), predictions=rows)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
