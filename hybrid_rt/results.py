"""Prediction: the answer for one picture, and Predictions: the answers for many."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.errors import HybridError, ModelFileError
from hybrid_rt.spec import ModelSpec, OperatingPoint
from hybrid_rt.tables import csv_lines, jsonl_lines, to_html, to_row, write_text

if TYPE_CHECKING:
    from PIL import Image

_THUMBNAIL = 256  # pixels


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A probability held against the spec's operating point; true where it is positive."""

    positive: str
    threshold: float
    is_positive: bool
    criterion: str

    def __bool__(self) -> bool:
        return self.is_positive

    def __str__(self) -> str:
        return self.positive if self.is_positive else f"not {self.positive}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """The answer for one picture.

    ``probabilities`` maps every class, in the spec's order, to its probability; ``logits`` is
    float32 ``[classes]``, before temperature and softmax; ``source`` names the picture. A notebook
    shows the picture beside the answer.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]
    logits: NDArray[np.float32]
    source: str
    decision: Decision | None = None
    picture: Callable[[], Image.Image] | None = field(default=None, repr=False)

    @classmethod
    def from_outputs(
        cls,
        spec: ModelSpec,
        probabilities: NDArray[np.float32],
        logits: NDArray[np.float32],
        source: str,
        picture: Callable[[], Image.Image] | None = None,
    ) -> Prediction:
        """From one row of the graph's outputs, ``[classes]`` each."""
        if probabilities.shape != (len(spec.classes),):
            raise ModelFileError(
                f"the model gives probabilities {probabilities.shape}; its specification has "
                f"{len(spec.classes)} classes: export it again"
            )
        values = dict(zip(spec.classes, probabilities.tolist(), strict=True))
        label = spec.classes[int(probabilities.argmax())]
        return cls(
            label=label,
            probability=values[label],
            probabilities=values,
            logits=logits,
            source=source,
            decision=_decide(spec.operating_point, values),
            picture=picture,
        )

    def top(self, k: int = 3) -> list[tuple[str, float]]:
        """The ``k`` most probable classes with their probabilities, most probable first."""
        ranked = sorted(self.probabilities.items(), key=lambda item: -item[1])
        return ranked[: max(k, 0)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        result: dict[str, Any] = {
            "source": self.source,
            "label": self.label,
            "probability": self.probability,
            "probabilities": dict(self.probabilities),
            "logits": self.logits.tolist(),
        }
        if self.decision is not None:
            result["decision"] = {
                "positive": self.decision.positive,
                "is_positive": self.decision.is_positive,
                "threshold": self.decision.threshold,
                "criterion": self.decision.criterion,
            }
        return result

    def _repr_html_(self) -> str:
        bars = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{value:.1%}</td><td style='width:12em'>"
            f"<div style='background:#4878a8;height:.8em;width:{value:.1%}'></div></td></tr>"
            for name, value in self.top(5)
        )
        image = ""
        if self.picture is not None:
            with contextlib.suppress(HybridError):  # the file may be gone by now
                image = f"<img style='max-width:{_THUMBNAIL}px' src='{_data_url(self.picture)}'>"
        return (
            f"<div style='display:flex;gap:1em'>{image}<div><b>{html.escape(self.label)}</b> "
            f"{self.probability:.1%}<br><small>{html.escape(self.source)}</small>"
            f"<table>{bars}</table></div></div>"
        )


@dataclass(frozen=True, kw_only=True)
class PredictionError:
    """What ``stream`` gives in place of a Prediction for a picture that could not be read."""

    source: str
    error: HybridError

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"source": self.source, "error": str(self.error)}


class Predictions(Sequence[Prediction]):
    """The answers for many pictures, in their order. Behaves like a list; writes tables."""

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
        shown = ", ".join(f"{p.label} {p.probability:.3f}" for p in self._items[:5])
        more = f", … {len(self) - 5} more" if len(self) > 5 else ""
        return f"Predictions([{shown}{more}])"

    @property
    def labels(self) -> list[str]:
        """The most probable class of each picture."""
        return [p.label for p in self._items]

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Float32 ``[pictures, classes]``."""
        return np.array([list(p.probabilities.values()) for p in self._items], np.float32)

    @property
    def logits(self) -> NDArray[np.float32]:
        """Float32 ``[pictures, classes]``, before temperature and softmax."""
        return np.array([p.logits for p in self._items], np.float32)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """CSV text with a header; also written to ``path``, whole or not at all."""
        return write_text(csv_lines(self._items), path)

    def to_jsonl(self, path: str | os.PathLike[str] | None = None) -> str:
        """One JSON object a line; also written to ``path``, whole or not at all."""
        return write_text(jsonl_lines(self._items), path)

    def to_pandas(self) -> Any:
        """A pandas DataFrame with the columns of to_csv."""
        import pandas

        return pandas.DataFrame([to_row(p) for p in self._items])

    def _repr_html_(self) -> str:
        return to_html(self._items)


def _decide(point: OperatingPoint | None, values: Mapping[str, float]) -> Decision | None:
    if point is None:
        return None
    return Decision(
        positive=point.positive,
        threshold=point.threshold,
        is_positive=values[point.positive] >= point.threshold,
        criterion=point.criterion,
    )


def _data_url(picture: Callable[[], Image.Image]) -> str:
    image = picture().convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
