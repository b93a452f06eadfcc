"""Fit on validation images, which the final weights have not seen.

Fitted are the temperature, the operating point, the prediction sets' calibration data and the
out-of-distribution detector. Each is measured on the subsets of the split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_rt.spec import ModelSpec
from hybrid_rt.uncertainty import conformal as rt_conformal
from hybrid_rt.uncertainty.ood import OodDetector
from hybrid_train.config import RunConfig
from hybrid_train.evaluation.reliability import softmax
from hybrid_train.model.hybrid import HybridClassifier
from hybrid_train.posthoc import conformal
from hybrid_train.posthoc.ood import fit_ood
from hybrid_train.posthoc.operating_point import at_threshold, choose_operating_point
from hybrid_train.posthoc.temperature import fit_temperature

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The final network's outputs on a subset: ``[n, classes]`` and ``[n, features]``."""

    logits: Array
    features: Array
    labels: Array
    groups: Array | None = None

    def probabilities(self, spec: ModelSpec) -> Array:
        """Return the runtime's probabilities: float32 ``[n, classes]``, with temperature."""
        return softmax(self.logits / spec.temperature).astype(np.float32)


class LogitsAndFeatures(nn.Module):
    """A network whose output is ``[batch, classes + features]``, from one pass."""

    def __init__(self, model: HybridClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.forward_features(images)
        return torch.cat((self.model.head(features), features), dim=1)


def fit_on_validation(
    spec: ModelSpec, val: Subset, train_features: Array, config: RunConfig
) -> tuple[ModelSpec, OodDetector]:
    """Return the completed spec and the fitted detector."""
    spec = spec.replace(temperature=fit_temperature(val.logits, val.labels))
    probabilities = val.probabilities(spec)
    if len(spec.classes) == 2:
        point = choose_operating_point(
            probabilities[:, 1],
            val.labels,
            positive=spec.classes[1],
            criterion=config.threshold,
            groups=val.groups,
            seed=config.seed,
        )
        spec = spec.replace(operating_point=point)
    sets = conformal.calibrate(probabilities, val.labels, spec.classes, groups=val.groups)
    spec = spec.replace(extras={**spec.extras, rt_conformal.EXTRAS_KEY: sets.to_dict()})
    branches = (spec.vit.features, spec.cnn.features)
    return spec, fit_ood(train_features, val.features, branches)


def measure(
    spec: ModelSpec, detector: OodDetector, subset: Subset, seed: int = 0
) -> dict[str, Any]:
    """Return operating point, prediction sets and OOD rate on a subset, ready for JSON."""
    probabilities = subset.probabilities(spec)
    result: dict[str, Any] = {"operating_point": None}
    point = spec.operating_point
    if point is not None:
        chosen = spec.classes.index(point.positive)
        result["operating_point"] = at_threshold(
            probabilities[:, chosen],
            subset.labels == chosen,
            point.threshold,
            subset.groups,
            seed=seed,
        )
    sets = rt_conformal.Conformal.of(spec)
    result["prediction_sets"] = conformal.measure(sets, probabilities, subset.labels)
    result["ood_rate"] = float((detector.score(subset.features) > 1).mean())
    return result
