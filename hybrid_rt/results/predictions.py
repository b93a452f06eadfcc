"""Predictions: the predictions for many images, and their tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.results.prediction import Prediction
from hybrid_rt.results.writers import csv_lines, jsonl_lines, to_html, to_row, write_text


class Predictions(Sequence[Prediction]):
    """The predictions for many images, in their order: a sequence that writes tables."""

    def __init__(self, items: Sequence[Prediction]) -> None:
        self._items = list(items)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Predictions: ...
    def __getitem__(self, index: int | slice) -> Prediction | Predictions:
        if isinstance(index, slice):
            return Predictions(self._items[index])
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self._items)

    def __repr__(self) -> str:
        shown = ", ".join(p.headline for p in self._items[:5])
        more = f", … {len(self) - 5} more" if len(self) > 5 else ""
        return f"Predictions([{shown}{more}])"

    @property
    def labels(self) -> list[str | None]:
        """The most probable class of each image; None if the model abstained."""
        return [p.label for p in self._items]

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Float32 ``[images, classes]``."""
        return np.array([list(p.probabilities.values()) for p in self._items], np.float32)

    @property
    def logits(self) -> NDArray[np.float32]:
        """Float32 ``[images, classes]``, before temperature and softmax."""
        return np.array([p.logits for p in self._items], np.float32)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return CSV text with a header; also write it to ``path``, completely or not at all."""
        return write_text(csv_lines(self._items), path)

    def to_jsonl(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return one JSON object a line; also write it to ``path``, completely or not at all."""
        return write_text(jsonl_lines(self._items), path)

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame with the columns of to_csv."""
        import pandas

        return pandas.DataFrame([to_row(p) for p in self._items])

    def _repr_html_(self) -> str:
        return to_html(self._items)
