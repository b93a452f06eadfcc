"""Rows of a model's outputs as predictions, explanations and errors."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from hybrid_rt.backends.base import Outputs
from hybrid_rt.errors import HybridError
from hybrid_rt.images.load import decode
from hybrid_rt.images.sources import is_named
from hybrid_rt.results.explanation import Explanation
from hybrid_rt.results.prediction import Prediction, PredictionError
from hybrid_rt.spec import ModelSpec
from hybrid_rt.streaming import Result
from hybrid_rt.uncertainty.decision import Rules


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """The spec, the rules and the float range of one call, to make predictions of rows."""

    spec: ModelSpec
    rules: Rules
    float_range: tuple[float, float] | None

    def prediction(self, source: Any, name: str, row: Outputs) -> Prediction:
        """Return the prediction of one row; it keeps the source, to show the image."""
        load_image = None
        if source is not None and not hasattr(source, "read"):  # a file can be read once
            load_image = functools.partial(
                decode, source, self.spec.preprocess, float_range=self.float_range
            )
        return Prediction.from_outputs(self.spec, row, name, load_image, rules=self.rules)

    def predictions(
        self, results: Iterable[Result], on_error: Literal["yield", "raise"]
    ) -> Iterator[Prediction | PredictionError]:
        """Yield a prediction or an error for each result, in constant memory."""
        for source, name, row in results:
            if not isinstance(row, HybridError):
                # Only a path is kept for a notebook's image: memory must not grow.
                yield self.prediction(source if is_named(source) else None, name, row)
            elif on_error == "raise":
                raise row
            else:
                yield PredictionError(source=name, error=row)

    def explanations(self, results: Iterable[Result]) -> Iterator[Explanation | PredictionError]:
        """Yield an explanation or an error for each result. Each source is read once more."""
        preprocess = self.spec.preprocess
        for source, name, row in results:
            if isinstance(row, HybridError):
                yield PredictionError(source=name, error=row)
            else:
                prediction = self.prediction(source, name, row)
                image = decode(source, preprocess, float_range=self.float_range)
                yield Explanation.from_outputs(prediction, row, image, preprocess)
