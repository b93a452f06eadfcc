"""Prediction sets that hold the true label as often as asked: split conformal prediction.

The calibration data are the probabilities of the true class of images that the model was
not trained on. A label is in the set if its probability is at least what all but the wanted
share of those images reach (score 1 - p of Sadinle, Lei and Wasserman, JASA 2019; finite-sample
ranks as in Angelopoulos and Bates, "Conformal Prediction: A Gentle Introduction", 2023).

    rule = Conformal.of(spec).rule(0.9)
    rule.labels({"no cancer": 0.7, "cancer": 0.3})  # ("no cancer", "cancer")
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hybrid_rt.errors import ModelFileError, SpecError, UsageError
from hybrid_rt.serialization import from_plain, to_plain
from hybrid_rt.spec import ModelSpec

#: Where the calibration data lie in ModelSpec.extras.
EXTRAS_KEY = "conformal"

#: The images over which a coverage is counted: those of each class, or all.
By = Literal["class", "image"]

_FIELDS = ("method", "calibrated_on", "groups", "images", "classes")
_ROUNDING = 1e-9  # (n + 1) * 0.9 may come out slightly above an integer


@dataclass(frozen=True, kw_only=True)
class RankTable:
    """Order statistics of the true class's probability over ``count`` calibration images.

    ``probabilities[i]``, falling, is the ``ranks[i]``-th largest; ``ranks`` None means all of
    them: 1, 2, … count. A rank that was left out is replaced by the next one, whose probability
    is lower: sets grow, coverage is kept.
    """

    count: int
    probabilities: tuple[float, ...]
    ranks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        ranks = range(1, self.count + 1) if self.ranks is None else self.ranks
        if len(ranks) != len(self.probabilities):
            raise SpecError(
                f"conformal table has {len(self.probabilities)} probabilities; expected one for "
                f"each of its {len(ranks)} ranks"
            )
        if any(not 0 <= p <= 1 for p in self.probabilities) or any(
            a < b for a, b in zip(self.probabilities, self.probabilities[1:], strict=False)
        ):
            raise SpecError("conformal table's probabilities; expected falling numbers in 0 to 1")
        if self.ranks and (
            self.ranks[0] < 1
            or self.ranks[-1] != self.count
            or any(a >= b for a, b in zip(self.ranks, self.ranks[1:], strict=False))
        ):
            raise SpecError(f"conformal table's ranks; expected rising ones up to {self.count}")
        if self.count < 0 or (self.count and not self.probabilities):
            raise SpecError(f"conformal table has no entry for {self.count} images")

    def threshold(self, coverage: float) -> float | None:
        """Return the probability that the ceil((count + 1) * coverage)-th image reaches.

        None if there are too few images for that coverage.
        """
        rank = math.ceil((self.count + 1) * coverage - _ROUNDING)
        if rank > self.count:
            return None
        if self.ranks is None:
            return self.probabilities[max(rank, 1) - 1]
        return self.probabilities[bisect.bisect_left(self.ranks, rank)]


@dataclass(frozen=True, kw_only=True)
class CoverageRule:
    """The thresholds of one coverage: a label is in the set if it reaches its class's threshold.

    ``short`` names the classes with too few calibration images for this coverage: they are in
    every set. The most probable label is in every set, so that none is empty.
    """

    coverage: float
    by: By
    thresholds: Mapping[str, float]
    short: tuple[str, ...] = ()

    def labels(self, probabilities: Mapping[str, float]) -> tuple[str, ...]:
        """Return the set for one image's probabilities, most probable label first."""
        ranked = sorted(probabilities.items(), key=lambda item: -item[1])
        return tuple(
            name for i, (name, p) in enumerate(ranked) if i == 0 or p >= self.thresholds[name]
        )

    @property
    def note(self) -> str:
        """The limitation of the sets at this coverage, or an empty text."""
        if not self.short:
            return ""
        needed = math.ceil(self.coverage / (1 - self.coverage) - _ROUNDING)
        what = "all labels are" if self.by == "image" else f"{' and '.join(self.short)} is"
        return (
            f"{what} in every set: a coverage of {self.coverage:g} needs {needed} calibration "
            f"images{'' if self.by == 'image' else ' of a class'}, and there were fewer"
        )


@dataclass(frozen=True, kw_only=True)
class Conformal:
    """A model's calibration data, read from ``spec.extras["conformal"]``.

    ``labels`` are the spec's classes, ``images`` is the table of all calibration images.
    ``classes`` has one table for each class, or is empty if there are too many classes to
    keep them; ``groups`` is the number of patients, if it is known.
    """

    labels: tuple[str, ...]
    images: RankTable
    classes: Mapping[str, RankTable] = field(default_factory=dict)
    groups: int | None = None
    calibrated_on: str = "validation"
    method: Literal["lac"] = "lac"

    @classmethod
    def of(cls, spec: ModelSpec) -> Conformal:
        """Return a spec's calibration data.

        Raises ModelFileError if it has none, SpecError if they are invalid.
        """
        data = spec.extras.get(EXTRAS_KEY)
        if data is None:
            raise ModelFileError(
                "this model has no calibration data for prediction sets; train it again with this "
                "version of hybrid-train, which keeps them, and export it"
            )
        path = f"extras.{EXTRAS_KEY}"
        if not isinstance(data, Mapping) or set(data) != set(_FIELDS):
            raise SpecError(f"{path}; expected an object with {', '.join(_FIELDS)}")
        if data["method"] != "lac":
            raise SpecError(
                f"{path}.method is {data['method']!r}; expected 'lac': train and export the model "
                "with this version of hybrid-rt"
            )
        tables = data["classes"]
        if not isinstance(tables, Mapping) or (tables and set(tables) != set(spec.classes)):
            raise SpecError(f"{path}.classes; expected a table for each of {spec.classes}")
        groups = data["groups"]
        if groups is not None and (type(groups) is not int or groups < 1):
            raise SpecError(f"{path}.groups is {groups!r}; expected a positive number or null")
        return cls(
            labels=spec.classes,
            images=from_plain(RankTable, data["images"], f"{path}.images"),
            classes={
                name: from_plain(RankTable, tables[name], f"{path}.classes[{name!r}]")
                for name in (spec.classes if tables else ())
            },
            groups=groups,
            calibrated_on=str(data["calibrated_on"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for ``spec.extras["conformal"]``."""
        return {name: to_plain(getattr(self, name)) for name in _FIELDS}

    def rule(self, coverage: float, by: By = "class") -> CoverageRule:
        """Return the thresholds for a coverage between 0 and 1.

        By class, each class has that coverage. Raises UsageError for another coverage, and by class
        if the model has no class tables.
        """
        if by not in get_args(By):
            raise UsageError(f"coverage_by is {by!r}; expected 'class' or 'image'")
        if isinstance(coverage, bool) or not isinstance(coverage, (int, float)):
            raise UsageError(f"coverage is {coverage!r}; expected a number such as 0.9")
        if not 0 < coverage < 1:
            raise UsageError(f"coverage is {coverage}; expected above 0 and below 1, such as 0.9")
        if by == "class" and not self.classes:
            raise UsageError(
                "this model has too many classes for a coverage of each; use coverage_by='image'"
            )
        tables = self.classes if by == "class" else dict.fromkeys(self.labels, self.images)
        found = {name: table.threshold(coverage) for name, table in tables.items()}
        return CoverageRule(
            coverage=float(coverage),
            by=by,
            thresholds={name: value or 0.0 for name, value in found.items()},
            short=tuple(name for name, value in found.items() if value is None),
        )
