"""Measure whether the heatmaps point at the lesion, on phantoms, whose lesions are known.

    python -m hybrid_export.localization model --output localization.html

Measures, of the deployed file itself, for each branch and on patients no run has seen:

- the pointing game (Zhang et al., "Top-down neural attention by excitation backprop", IJCV 2018):
  how often the hottest point lies in the lesion or within 15 pixels (of 512) of it;
- the share of the heat that lies inside the lesion (Wang et al., Score-CAM, 2020);
- deletion and insertion (Petsiuk et al., RISE, 2018): how fast the predicted class's probability
  falls as the hottest pixels are blurred away, and rises as they are brought into a blurred image.

Beside each are baselines that need no network: the image's centre, the breast's centre, the
brightest point, a random point of the breast; and random pixel orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.integrate import trapezoid

from hybrid_export.localization.pointing import BRANCHES, Pointing, point_at
from hybrid_rt import HybridEngine
from hybrid_rt.errors import UsageError
from hybrid_rt.images import load_pixels
from hybrid_rt.results.explanation import Explanation
from hybrid_train.phantom import generate

STEPS = 20  # of the deletion and insertion curves
SEED = 1_000_003  # far from the seeds of training runs: other patients
_BLUR = 1 / 10  # of the image's side: what a deleted pixel becomes

Curve = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Mean probability of the predicted class over the share of pixels removed or brought back."""

    name: str
    deletion: list[float]
    insertion: list[float]

    @property
    def deletion_area(self) -> float:
        """Area under the deletion curve; smaller is better."""
        return float(trapezoid(self.deletion, np.linspace(0, 1, len(self.deletion))))

    @property
    def insertion_area(self) -> float:
        """Area under the insertion curve; larger is better."""
        return float(trapezoid(self.insertion, np.linspace(0, 1, len(self.insertion))))


@dataclass(frozen=True, kw_only=True)
class Localization:
    """What was measured, and with what. ``found`` of ``lesions`` images were called positive."""

    file: str
    engine: str
    patients: int
    seed: int
    lesions: int
    found: int
    lesion_area: float  # share of the image
    pointing: list[Pointing]
    curves: list[Curves]
    curve_images: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, the areas under the curves among them."""
        data = asdict(self)
        for entry, curve in zip(data["curves"], self.curves, strict=True):
            entry |= {
                "deletion_area": curve.deletion_area,
                "insertion_area": curve.insertion_area,
            }
        return data


def measure(
    engine: HybridEngine,
    *,
    patients: int = 100,
    seed: int = SEED,
    positive: str | None = None,
    curve_images: int = 32,
    size: int = 512,
) -> tuple[Localization, list[tuple[Explanation, NDArray[np.bool_]]]]:
    """Run the measurement; also returns the explanations of found lesions with their masks.

    ``positive`` is the class that means a lesion (default: the operating point's, else the last).
    Raises ModelFileError for a model without heatmaps, UsageError if no lesion was found.
    """
    spec = engine.spec
    if positive is None:
        point = spec.operating_point
        positive = point.positive if point else spec.classes[-1]
    if positive not in spec.classes:
        raise UsageError(f"--positive {positive!r}; expected one of {', '.join(spec.classes)}")
    phantoms = generate(patients, seed=seed, size=size, with_masks=True)
    rows = [row for row in phantoms if row["mask"].any()]
    explanations = cast(list[Explanation], engine.explain([row["image"] for row in rows]))
    found = [
        (e, row["mask"])
        for e, row in zip(explanations, rows, strict=True)
        if e.prediction.label == positive
    ]
    if not found:
        raise UsageError(
            f"the model calls none of {len(rows)} phantoms with a lesion {positive!r}; it was not "
            "trained on phantoms, or too short"
        )
    rng = np.random.default_rng(seed)
    return Localization(
        file=Path(str(engine.info["path"])).name,
        engine=repr(engine),
        patients=patients,
        seed=seed,
        lesions=len(rows),
        found=len(found),
        lesion_area=float(np.mean([mask.mean() for _, mask in found])),
        pointing=point_at(found),
        curves=curves(engine, [e for e, _ in found[:curve_images]], rng),
        curve_images=min(len(found), curve_images),
    ), found


def curves(
    engine: HybridEngine, explanations: Sequence[Explanation], rng: np.random.Generator
) -> list[Curves]:
    """Return deletion and insertion of each branch and of random orders, at the model's input."""
    preprocess = engine.spec.preprocess
    sums: dict[str, tuple[Curve, Curve]] = {}
    for explanation in explanations:
        pixels = load_pixels(explanation.image, preprocess)
        blurred = np.asarray(
            Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(pixels.shape[0] * _BLUR))
        )
        column = engine.spec.classes.index(explanation.prediction.label)
        side = (pixels.shape[1], pixels.shape[0])
        for name in (*BRANCHES, "random order"):
            if name in BRANCHES:
                grid = explanation.grids[f"heatmap_{name}"]
                heat = np.asarray(Image.fromarray(grid).resize(side, Image.Resampling.BILINEAR))
                # Equal heat, such as all that is cut off at 0, in random order.
                order = np.lexsort((rng.random(heat.size), -heat.ravel()))
            else:
                order = rng.permutation(side[0] * side[1])
            made = [steps(pixels, blurred, order), steps(blurred, pixels, order)]
            values = [engine.run(stack)["probabilities"][:, column] for stack in made]
            before = sums.get(name, (np.zeros(STEPS + 1), np.zeros(STEPS + 1)))
            sums[name] = (before[0] + values[0], before[1] + values[1])
    count = max(len(explanations), 1)
    return [
        Curves(name=name, deletion=list(d / count), insertion=list(i / count))
        for name, (d, i) in sums.items()
    ]


def steps(
    start: NDArray[np.uint8], end: NDArray[np.uint8], order: NDArray[np.intp]
) -> NDArray[np.uint8]:
    """Return ``[STEPS + 1, h, w, 3]``: from ``start`` to ``end``, pixel by pixel in that order."""
    shape = start.shape
    flat_start, flat_end = start.reshape(-1, 3), end.reshape(-1, 3)
    made = np.repeat(flat_start[None], STEPS + 1, axis=0)
    for i in range(1, STEPS + 1):
        changed = order[: round(len(order) * i / STEPS)]
        made[i, changed] = flat_end[changed]
    return made.reshape(STEPS + 1, *shape)
