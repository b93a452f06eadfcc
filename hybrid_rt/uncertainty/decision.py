"""Rules of a call: its coverage, its threshold and whether it abstains, for every image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict, get_args

from hybrid_rt.errors import UsageError
from hybrid_rt.spec import ModelSpec, OperatingPoint
from hybrid_rt.uncertainty.conformal import By, Conformal, CoverageRule

#: The criterion of a threshold that came from the caller and not from the spec.
GIVEN = "given"


class RuleArguments(TypedDict, total=False):
    """Keyword arguments of the engine's methods that make_rules takes."""

    coverage: float | None
    coverage_by: By
    threshold: float | OperatingPoint | None
    abstain: bool


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A probability compared with an operating point; true if it is positive."""

    positive: str
    threshold: float
    is_positive: bool
    criterion: str

    def __bool__(self) -> bool:
        return self.is_positive

    def __str__(self) -> str:
        return self.positive if self.is_positive else f"not {self.positive}"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How probabilities become a prediction."""

    point: OperatingPoint | None = None
    coverage: CoverageRule | None = None
    abstain: bool = False

    def decide(self, probabilities: Mapping[str, float]) -> Decision | None:
        """Return the decision at the operating point, if there is one."""
        if self.point is None:
            return None
        return Decision(
            positive=self.point.positive,
            threshold=self.point.threshold,
            is_positive=probabilities[self.point.positive] >= self.point.threshold,
            criterion=self.point.criterion,
        )

    def prediction_set(self, probabilities: Mapping[str, float]) -> tuple[str, ...] | None:
        """Return the labels at the coverage that was asked for, if any."""
        return None if self.coverage is None else self.coverage.labels(probabilities)


def make_rules(
    spec: ModelSpec,
    *,
    coverage: float | None = None,
    coverage_by: By = "class",
    threshold: float | OperatingPoint | None = None,
    abstain: bool = False,
) -> Rules:
    """Return the rules of a call, checked against the model's spec.

    A number as ``threshold`` is for the spec's positive class, or for the second of two classes.
    Raises UsageError if an argument is invalid, ModelFileError if the model lacks the data for it.
    """
    if coverage_by not in get_args(By):
        raise UsageError(f"coverage_by is {coverage_by!r}; expected 'class' or 'image'")
    return Rules(
        point=spec.operating_point if threshold is None else _point(spec, threshold),
        coverage=None if coverage is None else Conformal.of(spec).rule(coverage, coverage_by),
        abstain=abstain,
    )


def parse_threshold(text: str) -> float | OperatingPoint:
    """Return the threshold of a command line, "0.3" or "cancer=0.3". Raises UsageError."""
    name, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UsageError(f"threshold {text!r}; expected a probability such as 0.3 or CLASS=0.3")
    return OperatingPoint(positive=name, threshold=value, criterion=GIVEN) if equals else value


def _point(spec: ModelSpec, threshold: float | OperatingPoint) -> OperatingPoint:
    classes = ", ".join(spec.classes)
    if isinstance(threshold, OperatingPoint):
        if threshold.positive not in spec.classes:
            raise UsageError(f"threshold is on {threshold.positive!r}; the classes are {classes}")
        return threshold
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise UsageError(f"threshold is {threshold!r}; expected a probability such as 0.3")
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold is {threshold}; expected a probability, 0 to 1")
    if spec.operating_point is not None:
        positive = spec.operating_point.positive
    elif len(spec.classes) == 2:
        positive = spec.classes[1]
    else:
        raise UsageError(
            f"a threshold among {len(spec.classes)} classes needs the class: an "
            f"OperatingPoint, or CLASS={threshold:g} on the command line; the classes are {classes}"
        )
    return OperatingPoint(positive=positive, threshold=float(threshold), criterion=GIVEN)
