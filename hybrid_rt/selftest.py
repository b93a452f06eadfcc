"""The self-test: compare the pixels and outputs of golden images with the exporter's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.backends.base import Outputs, Pixels
from hybrid_rt.bundle.golden import GoldenImages, pixels_digest
from hybrid_rt.bundle.manifest import BundleFile
from hybrid_rt.errors import HybridError
from hybrid_rt.spec import ModelSpec

#: Largest difference of a logit from PyTorch fp32 that is taken for rounding, as a share of the
#: largest logit, if the file's parity report states no tolerance.
_DEFAULT_SHARE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 2e-1}


#: Largest difference of a probability from the softmax of the file's own logits, which every
#: precision computes in FP32.
_PROBABILITY = 1e-3

#: Largest difference of a feature vector's length, as a share.
_LENGTH = 0.1


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """The result of a self-test.

    ``preprocessing_faults`` maps an image's name to what differs in its pixels,
    ``engine_faults`` to what differs in its outputs. ``logits_max_abs`` is the largest difference
    from PyTorch among the images whose pixels are right, NaN if there is none.
    """

    images: int
    preprocessing_faults: dict[str, str]
    engine_faults: dict[str, str]
    logits_max_abs: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether every image has the right pixels and outputs within the tolerance."""
        return not self.preprocessing_faults and not self.engine_faults

    @property
    def text(self) -> str:
        """The verdict and the faults, one a line."""
        verdict = "passed" if self.passed else "FAILED"
        lines = [
            f"self-test {verdict}: {self.images} golden images, logits max_diff="
            f"{self.logits_max_abs:.2e}, tolerance {self.tolerance:.2e}"
        ]
        for kind, faults, advice in (
            (
                "preprocessing fault",
                self.preprocessing_faults,
                "the pixels differ from training's: compare the versions of Pillow, NumPy and "
                "pydicom with those of the export",
            ),
            (
                "engine fault",
                self.engine_faults,
                "the pixels are right, the outputs are not: try another backend or precision, "
                "or export again on this machine",
            ),
        ):
            lines += [f"  {kind}: {name}: {what}" for name, what in faults.items()]
            lines += [f"  {advice}"] if faults else []
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "passed": self.passed,
            "images": self.images,
            "preprocessing_faults": self.preprocessing_faults,
            "engine_faults": self.engine_faults,
            "logits_max_abs": None if np.isnan(self.logits_max_abs) else self.logits_max_abs,
            "tolerance": self.tolerance,
        }

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        return self.text


def run_selftest(
    golden: GoldenImages,
    entry: BundleFile | None,
    spec: ModelSpec,
    load: Callable[[Any], Pixels],
    run: Callable[[Pixels], Outputs],
    *,
    report: Mapping[str, Any] | None = None,
) -> SelfTest:
    """Decode the golden images and run each alone, then all in one batch.

    Pixels and outputs are compared with the exporter's. ``report`` is the parity report of the
    backend and precision that run, by default the file's first one.
    """
    report = report or (entry.parity_report if entry else None)
    tolerance = _tolerance(golden, entry, report)
    pixel_faults: dict[str, str] = {}
    engine_faults: dict[str, str] = {}
    ready: dict[int, Pixels] = {}
    for i, name in enumerate(golden.names):
        try:
            pixels = load(golden.encoded[i])
        except HybridError as err:
            pixel_faults[name] = f"cannot be read here: {err}"
            continue
        digest = pixels_digest(pixels)
        if digest == golden.pixels_sha256[i]:
            ready[i] = pixels
        else:
            pixel_faults[name] = f"pixels {digest[:12]}…, expected {golden.pixels_sha256[i][:12]}…"
    largest = float("nan")
    batches = [[i] for i in ready] + [list(ready)] * (len(ready) > 1)
    for batch in batches:
        outputs = run(np.stack([ready[i] for i in batch]))
        for place, i in enumerate(batch):
            row = {name: values[place] for name, values in outputs.items()}
            gap = _gap(row["logits"], golden.logits[i])
            largest = float(np.fmax(gap, largest))
            fault = _compare(row, golden, i, spec, tolerance, _least_cosine(report))
            if fault is not None:
                together = f" (in a batch of {len(batch)})" if len(batch) > 1 else ""
                engine_faults.setdefault(golden.names[i], fault + together)
    return SelfTest(
        images=len(golden.names),
        preprocessing_faults=pixel_faults,
        engine_faults=engine_faults,
        logits_max_abs=largest,
        tolerance=tolerance,
    )


def _compare(
    row: Outputs,
    golden: GoldenImages,
    i: int,
    spec: ModelSpec,
    tolerance: float,
    least_cosine: float,
) -> str | None:
    """What is wrong with one image's outputs; a number that is not finite is."""
    logits = row["logits"]
    if logits.shape != golden.logits[i].shape:
        return f"{len(logits)} logits, expected {len(golden.logits[i])}"
    gap = _gap(logits, golden.logits[i])
    if not gap <= tolerance:
        return f"logits differ by {gap:.2e}, tolerance {tolerance:.2e}"
    got, expected = int(logits.argmax()), int(golden.logits[i].argmax())
    margin = float(golden.logits[i][expected] - golden.logits[i][got])
    if margin > 2 * tolerance:
        return f"predicts {spec.classes[got]}, expected {spec.classes[expected]}"
    scaled = logits.astype(np.float64) / spec.temperature
    softmax = np.exp(scaled - scaled.max())
    gap = _gap(row["probabilities"], softmax / softmax.sum())
    if not gap <= _PROBABILITY:
        return f"probabilities differ from softmax(logits / {spec.temperature:g}) by {gap:.2e}"
    features, wanted = (f.astype(np.float64) for f in (row["features"], golden.features[i]))
    lengths = float(np.linalg.norm(features)), float(np.linalg.norm(wanted))
    cosine = float(features @ wanted) / max(lengths[0] * lengths[1], 1e-30)
    if not (cosine >= least_cosine and abs(lengths[0] - lengths[1]) <= _LENGTH * lengths[1]):
        return (
            f"features have a cosine of {cosine:.5f} with the expected ones and a length of "
            f"{lengths[0]:.3g}, expected {least_cosine:.5f} or more and {lengths[1]:.3g}"
        )
    return None


def _gap(got: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(got - expected).max()) if got.shape == expected.shape else float("nan")


def _stated(report: Mapping[str, Any] | None, name: str) -> float | None:
    tolerances: Any = (report or {}).get("tolerances")
    stated = tolerances.get(name) if isinstance(tolerances, dict) else None
    return float(stated) if isinstance(stated, (int, float)) and stated > 0 else None


def _least_cosine(report: Mapping[str, Any] | None) -> float:
    """The parity report's own tolerance, or that of INT8."""
    return _stated(report, "features_cosine_min") or 0.98


def _tolerance(
    golden: GoldenImages, entry: BundleFile | None, report: Mapping[str, Any] | None
) -> float:
    """The parity report's own tolerance, or the precision's share of the largest logit."""
    stated = _stated(report, "logits_max_abs")
    if stated is not None:
        return stated
    largest: NDArray[np.float32] = np.abs(golden.logits).max()
    share = _DEFAULT_SHARE[entry.precision if entry else "fp32"]
    return share * max(float(largest), 1.0)
