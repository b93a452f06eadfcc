"""Prediction: the prediction for one image."""

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

from hybrid_rt.backends.base import Outputs
from hybrid_rt.errors import HybridError, ModelFileError
from hybrid_rt.spec import ModelSpec
from hybrid_rt.uncertainty.conformal import CoverageRule
from hybrid_rt.uncertainty.decision import Decision, Rules

if TYPE_CHECKING:
    from PIL import Image

_THUMBNAIL = 256  # pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """The prediction for one image.

    ``probabilities`` maps every class, in the spec's order, to its probability; ``logits`` is
    float32 ``[classes]``, before temperature and softmax; ``source`` names the image. A notebook
    shows the image beside the prediction.

    ``decision`` is set if the spec or the caller has a threshold. ``prediction_set`` (most probable
    label first) and its rule ``coverage`` are set if the caller asked for a coverage. ``ood_score``
    and ``is_ood`` are set if the model has an out-of-distribution detector; a score above 1 means
    an image unlike the training images. If the caller asked to abstain, the label, probability,
    decision and prediction set of an out-of-distribution image are None. ``probabilities`` and
    ``logits`` remain for an audit.
    """

    label: str | None
    probability: float | None
    probabilities: Mapping[str, float]
    logits: NDArray[np.float32]
    source: str
    decision: Decision | None = None
    prediction_set: tuple[str, ...] | None = None
    coverage: CoverageRule | None = None
    ood_score: float | None = None
    is_ood: bool | None = None
    load_image: Callable[[], Image.Image] | None = field(default=None, repr=False)

    @classmethod
    def from_outputs(
        cls,
        spec: ModelSpec,
        row: Outputs,
        source: str,
        load_image: Callable[[], Image.Image] | None = None,
        *,
        rules: Rules | None = None,
    ) -> Prediction:
        """Return the prediction of one row of the graph's outputs, by output name.

        Args:
            row: ``probabilities`` and ``logits``, ``[classes]`` each, and ``ood_score`` if the
                model has a detector.
            source: The image's name.
            rules: Those of make_rules; by default the spec's operating point decides.
        """
        probabilities = row["probabilities"]
        if probabilities.shape != (len(spec.classes),):
            raise ModelFileError(
                f"the model returns probabilities {probabilities.shape}; its specification has "
                f"{len(spec.classes)} classes: export it again"
            )
        values = dict(zip(spec.classes, probabilities.tolist(), strict=True))
        label = spec.classes[int(probabilities.argmax())]
        rules = rules or Rules(point=spec.operating_point)
        ood_score = float(row["ood_score"]) if "ood_score" in row else None
        is_ood = None if ood_score is None else not ood_score <= 1  # also if it is no number
        abstains = rules.abstain and is_ood
        return cls(
            label=None if abstains else label,
            probability=None if abstains else values[label],
            probabilities=values,
            logits=row["logits"],
            source=source,
            decision=None if abstains else rules.decide(values),
            prediction_set=None if abstains else rules.prediction_set(values),
            coverage=None if abstains else rules.coverage,
            ood_score=ood_score,
            is_ood=is_ood,
            load_image=load_image,
        )

    @property
    def abstained(self) -> bool:
        """Whether the model made no prediction because the image is out of distribution."""
        return self.label is None

    @property
    def headline(self) -> str:
        """The prediction in a few words, such as "cancer 93.1%"."""
        if self.label is None:
            return "abstained: unlike the training images"
        note = " (unlike the training images)" if self.is_ood else ""
        return f"{self.label} {self.probability:.1%}{note}"

    def top(self, k: int = 3) -> list[tuple[str, float]]:
        """Return the ``k`` most probable classes with their probabilities, most probable first."""
        ranked = sorted(self.probabilities.items(), key=lambda item: -item[1])
        return ranked[: max(k, 0)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
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
        if self.prediction_set is not None and self.coverage is not None:
            result["prediction_set"] = list(self.prediction_set)
            result["coverage"] = {
                "wanted": self.coverage.coverage,
                "by": self.coverage.by,
                "note": self.coverage.note,
            }
        if self.ood_score is not None:
            result |= {"ood_score": self.ood_score, "is_ood": self.is_ood}
        return result

    def _repr_html_(self) -> str:
        bars = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{value:.1%}</td><td style='width:12em'>"
            f"<div style='background:#4878a8;height:.8em;width:{value:.1%}'></div></td></tr>"
            for name, value in self.top(5)
        )
        image = ""
        if self.load_image is not None:
            with contextlib.suppress(HybridError):  # the file may be gone by now
                image = f"<img style='max-width:{_THUMBNAIL}px' src='{_data_url(self.load_image)}'>"
        return (
            f"<div style='display:flex;gap:1em'>{image}<div><b>{html.escape(self.headline)}</b>"
            f"<br><small>{html.escape(self.source)}</small>"
            f"<table>{bars}</table></div></div>"
        )


@dataclass(frozen=True, kw_only=True)
class PredictionError:
    """An image that could not be read, in place of its Prediction in a stream."""

    source: str
    error: HybridError

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"source": self.source, "error": str(self.error)}


def _data_url(load_image: Callable[[], Image.Image]) -> str:
    image = load_image().convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
