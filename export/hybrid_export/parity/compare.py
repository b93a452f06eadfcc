"""The parity report: an exported file against PyTorch fp32, on images, in every batch.

Accuracy alone is not enough. Exported transformers have been seen to be right for one image and
wrong for the second row of a batch (NVIDIA/TensorRT issues 4853, 4796, 4813), so the same image
is also run alone, in batches of several sizes, shuffled, and beside neighbours that it never had.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_export.parity.dataset import VerificationSet
from hybrid_export.parity.metrics import (
    auroc,
    changed_decisions,
    cosine_min,
    heatmap_correlation,
    logit_scale,
    one_pair,
    probability_gap,
    top1_flips,
)
from hybrid_export.parity.tolerances import Tolerances
from hybrid_export.sessions import describe, is_runtime, run_batches
from hybrid_rt.backends.base import Outputs, Session
from hybrid_rt.spec import ModelSpec

#: Images whose batch invariance is checked; each is run in six batches.
_INVARIANCE_IMAGES = 8

#: A tolerance on the AUROC's shift that means none at all.
_NO_SHIFT = 1e-6

#: A branch that moves the logit by less than this share of the tolerance of the logit error is
#: silent.
_SILENT = 0.1


@dataclass(frozen=True, kw_only=True)
class Reference:
    """PyTorch fp32's outputs for the verification images."""

    images: VerificationSet
    outputs: Outputs
    detail: str

    @classmethod
    def of(cls, session: Session, images: VerificationSet) -> Reference:
        """Run the network over the images."""
        outputs = run_batches(session, images.pixels)
        return cls(images=images, outputs=outputs, detail=describe(session))

    def first(self, count: int) -> Reference:
        """Return the same for the first ``count`` images."""
        images = self.images.first(count)
        outputs = {name: values[: len(images)] for name, values in self.outputs.items()}
        return Reference(images=images, outputs=outputs, detail=self.detail)


@dataclass(kw_only=True)
class ParityReport:
    """What was measured and which tolerances were exceeded. ``failures`` is empty if it passed."""

    reference: str
    measured_with: str
    images: int
    origin: str
    tolerances: dict[str, float]
    logits_max_abs: float
    logits_mean_abs: float
    features_cosine_min: float
    top1_flips: int
    auroc_reference: float | None
    auroc: float | None
    decision_flips: int
    batch_invariance_max_abs: float
    batch_invariance_flips: int
    heatmaps_correlation: float | None = None
    heatmaps_correlation_min: float | None = None
    #: The runtime's backend and device, and the precision hint that it was opened with, if any.
    backend: str | None = None
    device: str | None = None
    precision_hint: str | None = None
    kept_fp32: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    worst_images: list[str] = field(default_factory=list)
    #: The same file on other libraries, each with its own measurements.
    also: list[ParityReport] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every value is within its tolerance, here and on every other library."""
        return not self.failures and all(other.passed for other in self.also)

    @property
    def verdict(self) -> str:
        """ "passed" or "FAILED", for the log."""
        return "passed" if self.passed else "FAILED"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, for the bundle; a number that is not finite becomes null."""
        data = {"passed": self.passed, **_finite(asdict(self))}
        data["also"] = [other.to_dict() for other in self.also]
        return data

    def all_failures(self) -> list[str]:
        """Return what differs here, and on other libraries with the library's name."""
        return [
            *self.failures,
            *(f"{text} ({other.measured_with})" for other in self.also for text in other.failures),
        ]

    def summary(self) -> str:
        """Return the measurements as one line."""
        auroc = ""
        heat = ""
        if self.heatmaps_correlation is not None:
            heat = f", heatmaps correlate {self.heatmaps_correlation:.4f}"
        if self.auroc is not None and self.auroc_reference is not None:
            auroc = f", AUROC {self.auroc_reference:.3f} -> {self.auroc:.3f}"
        return (
            f"logits max {self.logits_max_abs:.1e} mean {self.logits_mean_abs:.1e}, features "
            f"cosine {self.features_cosine_min:.6f}, top-1 flips {self.top1_flips}/{self.images}"
            f"{auroc}, batch invariance {self.batch_invariance_max_abs:.1e}{heat}"
        )


def _finite(data: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in data.items()
    }


def compare(
    session: Session,
    reference: Reference,
    spec: ModelSpec,
    tolerances: Tolerances,
    *,
    brief: bool = False,
    precision_hint: str | None = None,
) -> ParityReport:
    """Compare a file's outputs with the reference, within the tolerances of its precision.

    ``brief`` checks batch invariance by running each image alone only: for a second library.
    ``precision_hint`` is what the session was opened with, for the report.
    """
    expected, images = reference.outputs, reference.images
    got = run_batches(session, images.pixels)
    errors = np.abs(got["logits"] - expected["logits"]).max(axis=1)  # [n]
    errors = np.where(np.isfinite(errors), errors, np.inf)
    flips = top1_flips(got["logits"], expected["logits"], tolerances.tie_margin)
    changed = changed_decisions(got, expected, spec, tolerances.tie_margin)
    labels = np.array([-1 if label is None else label for label in images.labels])
    moved, moved_flips, probabilities_wrong = _invariance(session, images.pixels, got, brief)
    scale = logit_scale(expected["logits"])
    heat = heatmap_correlation(got, expected, _SILENT * tolerances.logits_max_abs * scale)
    report = ParityReport(
        reference=reference.detail,
        measured_with=describe(session),
        backend=session.backend if is_runtime(session) else None,
        device=session.device if is_runtime(session) else None,
        precision_hint=precision_hint,
        images=len(images),
        origin=images.origin,
        tolerances=tolerances.to_dict(scale),
        logits_max_abs=float(errors.max()),
        logits_mean_abs=float(np.abs(got["logits"] - expected["logits"]).mean()),
        features_cosine_min=cosine_min(got["features"], expected["features"]),
        top1_flips=int(flips.sum()),
        auroc_reference=auroc(expected["probabilities"], labels, spec),
        auroc=auroc(got["probabilities"], labels, spec),
        decision_flips=int(changed.sum()),
        batch_invariance_max_abs=moved,
        batch_invariance_flips=moved_flips,
        heatmaps_correlation=None if heat is None else heat[0],
        heatmaps_correlation_min=None if heat is None else heat[1],
    )
    pair = one_pair(labels) if tolerances.auroc_shift > _NO_SHIFT else 0.0
    report.tolerances["auroc_shift"] = max(tolerances.auroc_shift, pair)
    report.failures = _failures(report, tolerances, scale)
    gap = probability_gap(got, spec)
    if not gap <= tolerances.probabilities_consistency:
        report.failures.append(
            f"probabilities differ from softmax(logits / {spec.temperature:g}) by {gap:.1e}"
        )
    if probabilities_wrong > tolerances.batch_invariance * scale:
        report.failures.append(
            f"features or probabilities depend on the batch by {probabilities_wrong:.1e}"
        )
    order = np.argsort(-errors)[:5]
    report.worst_images = [f"{images.names[i]}: logits off by {errors[i]:.1e}" for i in order]
    return report


def _invariance(
    session: Session, pixels: NDArray[np.uint8], in_order: Outputs, brief: bool
) -> tuple[float, int, float]:
    """Return the largest change of a logit, flips, and the largest other change, of all batches."""
    chosen = pixels[:_INVARIANCE_IMAGES]
    n = len(chosen)
    alone = run_batches(session, chosen, 1)
    placements = [(np.arange(n), {k: v[:n] for k, v in in_order.items()})]
    placements += [] if brief else _placements(session, chosen)
    logits, other, flips = 0.0, 0.0, 0
    for rows, outputs in placements:
        for name, values in outputs.items():
            expected = alone[name][rows]
            gap = np.abs(values - expected).max() if np.isfinite(values).all() else np.inf
            if name == "logits":
                logits = max(logits, float(gap))
                flips += int(top1_flips(values, expected, 0.0).sum()) if gap > 0 else 0
            elif name in ("probabilities", "features"):
                reach = max(1.0, float(np.abs(expected).max()) / 10)
                other = max(other, float(gap) / reach)
    return logits, flips, other


def _placements(
    session: Session, images: NDArray[np.uint8]
) -> list[tuple[NDArray[np.int64], Outputs]]:
    """Return rows and their outputs: shuffled, in batches of 2 and 3, beside other images."""
    n = len(images)
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(n)
    placements = [(shuffled, run_batches(session, images[shuffled], n))]
    for size in (2, 3):
        rows = np.arange(n)[::-1][: size * max(1, min(n // size, 2))]
        placements.append((rows, run_batches(session, images[rows], size)))
    noise = rng.integers(0, 256, (2, *images.shape[1:]), dtype=np.uint8)
    extremes = np.stack([np.zeros_like(images[0]), np.full_like(images[0], 255)])
    rows = np.arange(min(2, n))
    mixed = np.concatenate([noise[:1], images[:1], extremes, images[1:2], noise[1:]])
    outputs = session.run(mixed)
    places = [1, 4][: len(rows)]
    placements.append((rows, {name: values[places] for name, values in outputs.items()}))
    return placements


def _failures(c: ParityReport, tolerances: Tolerances, scale: float) -> list[str]:
    """Return one text for each tolerance that was exceeded."""
    found = []

    def check(broken: bool, text: str) -> None:
        if broken:
            found.append(text)

    logits, batch = tolerances.logits_max_abs * scale, tolerances.batch_invariance * scale
    check(
        not c.logits_max_abs <= logits,
        f"logits differ by {c.logits_max_abs:.1e}, tolerance {logits:g}",
    )
    check(
        not c.features_cosine_min >= tolerances.features_cosine_min,
        f"features' cosine is {c.features_cosine_min:.6f}, "
        f"tolerance {tolerances.features_cosine_min}",
    )
    allowed = tolerances.allowed_flips(c.images)
    check(c.top1_flips > allowed, f"{c.top1_flips} top-1 flips, tolerance {allowed}")
    check(c.decision_flips > allowed, f"{c.decision_flips} decisions changed, tolerance {allowed}")
    if c.auroc is not None and c.auroc_reference is not None:
        shift = abs(c.auroc - c.auroc_reference)
        most = c.tolerances["auroc_shift"] + 1e-9
        check(not shift <= most, f"AUROC moved {shift:.4f}, tolerance {most:.4f}")
    check(
        not c.batch_invariance_max_abs <= batch,
        f"a row depends on its batch by {c.batch_invariance_max_abs:.1e}, tolerance {batch:g}",
    )
    if c.heatmaps_correlation is not None:
        check(
            not c.heatmaps_correlation >= tolerances.heatmaps_correlation,
            f"heatmaps correlate {c.heatmaps_correlation:.4f}, "
            f"tolerance {tolerances.heatmaps_correlation}",
        )
    check(c.batch_invariance_flips > 0, f"{c.batch_invariance_flips} flips between batches")
    return found
