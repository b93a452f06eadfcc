"""Prediction: the answer for one picture."""

from __future__ import annotations

import base64
import contextlib
import html
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.errors import HybridError, ModelFileError
from hybrid_rt.spec import ModelSpec
from hybrid_rt.uncertainty.conformal import CoverageRule
from hybrid_rt.uncertainty.decision import Decision, Rules

if TYPE_CHECKING:
    from PIL import Image

_THUMBNAIL = 256  # pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """The answer for one picture.

    ``probabilities`` maps every class, in the spec's order, to its probability; ``logits`` is
    float32 ``[classes]``, before temperature and softmax; ``source`` names the picture. A notebook
    shows the picture beside the answer.

    ``decision`` is there where the spec or the caller gave a threshold, ``label_set`` (most
    probable label first) and its rule ``coverage`` where the caller asked for a coverage,
    ``novelty`` and ``foreign`` where the model knows its training pictures: a novelty above 1
    means a picture unlike them. Where the caller asked to abstain, a foreign picture has no
    label, probability, decision or label set: they are None, and only the raw ``probabilities``
    and ``logits`` are left for an audit.
    """

    label: str | None
    probability: float | None
    probabilities: Mapping[str, float]
    logits: NDArray[np.float32]
    source: str
    decision: Decision | None = None
    label_set: tuple[str, ...] | None = None
    coverage: CoverageRule | None = None
    novelty: float | None = None
    foreign: bool | None = None
    picture: Callable[[], Image.Image] | None = field(default=None, repr=False)

    @classmethod
    def from_outputs(
        cls,
        spec: ModelSpec,
        probabilities: NDArray[np.float32],
        logits: NDArray[np.float32],
        source: str,
        picture: Callable[[], Image.Image] | None = None,
        *,
        rules: Rules | None = None,
        novelty: float | None = None,
    ) -> Prediction:
        """From one row of the graph's outputs, ``[classes]`` each.

        ``rules`` are those of make_rules; by default the spec's operating point decides.
        """
        if probabilities.shape != (len(spec.classes),):
            raise ModelFileError(
                f"the model gives probabilities {probabilities.shape}; its specification has "
                f"{len(spec.classes)} classes: export it again"
            )
        values = dict(zip(spec.classes, probabilities.tolist(), strict=True))
        label = spec.classes[int(probabilities.argmax())]
        rules = rules or Rules(point=spec.operating_point)
        foreign = None if novelty is None else not novelty <= 1  # also where it is no number
        if rules.abstain and foreign:
            return cls(
                label=None,
                probability=None,
                probabilities=values,
                logits=logits,
                source=source,
                novelty=novelty,
                foreign=foreign,
                picture=picture,
            )
        return cls(
            label=label,
            probability=values[label],
            probabilities=values,
            logits=logits,
            source=source,
            decision=rules.decide(values),
            label_set=rules.label_set(values),
            coverage=rules.coverage,
            novelty=novelty,
            foreign=foreign,
            picture=picture,
        )

    @property
    def abstained(self) -> bool:
        """Whether the model gave no answer, the picture being foreign to it."""
        return self.label is None

    @property
    def headline(self) -> str:
        """The answer in a few words, such as "cancer 93.1%"."""
        if self.label is None:
            return "abstained: unlike the training pictures"
        foreign = " (unlike the training pictures)" if self.foreign else ""
        return f"{self.label} {self.probability:.1%}{foreign}"

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
        if self.label_set is not None and self.coverage is not None:
            result["label_set"] = list(self.label_set)
            result["coverage"] = {
                "wanted": self.coverage.coverage,
                "by": self.coverage.by,
                "note": self.coverage.note,
            }
        if self.novelty is not None:
            result |= {"novelty": self.novelty, "foreign": self.foreign}
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
            f"<div style='display:flex;gap:1em'>{image}<div><b>{html.escape(self.headline)}</b>"
            f"<br><small>{html.escape(self.source)}</small>"
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


def _data_url(picture: Callable[[], Image.Image]) -> str:
    image = picture().convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
