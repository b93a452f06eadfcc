"""What is fitted when the weights are final, on validation pictures that they have not seen.

The temperature, the operating point, the calibration data of label sets and the distance from
which a picture counts as foreign; and how each of them does on a part of the split.
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
from hybrid_rt.uncertainty.ood import Novelty
from hybrid_train.config import TrainConfig
from hybrid_train.evaluation.reliability import softmax
from hybrid_train.model.hybrid import HybridClassifier
from hybrid_train.posthoc import conformal
from hybrid_train.posthoc.ood import fit_novelty
from hybrid_train.posthoc.operating_point import at_threshold, choose_operating_point
from hybrid_train.posthoc.temperature import fit_temperature

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the split as the final network sees it: ``[n, classes]`` and ``[n, features]``."""

    logits: Array
    features: Array
    labels: Array
    groups: Array | None = None

    def probabilities(self, spec: ModelSpec) -> Array:
        """What the runtime gives: float32 ``[n, classes]``, with the spec's temperature."""
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
    spec: ModelSpec, val: Part, train_features: Array, config: TrainConfig
) -> tuple[ModelSpec, Novelty]:
    """The spec with temperature, operating point and label sets, and the fitted novelty."""
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
    return spec, fit_novelty(train_features, val.features, branches)


def measure(spec: ModelSpec, novelty: Novelty, part: Part, seed: int = 0) -> dict[str, Any]:
    """How the fitted things do on a part, ready for JSON."""
    probabilities = part.probabilities(spec)
    result: dict[str, Any] = {"operating_point": None}
    point = spec.operating_point
    if point is not None:
        chosen = spec.classes.index(point.positive)
        result["operating_point"] = at_threshold(
            probabilities[:, chosen],
            part.labels == chosen,
            point.threshold,
            part.groups,
            seed=seed,
        )
    sets = rt_conformal.Conformal.of(spec)
    result["label_sets"] = conformal.measure(sets, probabilities, part.labels)
    result["called_foreign"] = float((novelty.score(part.features) > 1).mean())
    return result
