"""Do the heatmaps point at the lesion? On phantoms its place is known.

    python -m hybrid_export.localization model --output localization.html

Measures, of the deployed file itself, for each branch and on patients no run has seen:

- the pointing game (Zhang et al., "Top-down neural attention by excitation backprop", IJCV 2018):
  how often the hottest point lies in the lesion or within 15 pixels (of 512) of it;
- the share of the heat that lies inside the lesion (Wang et al., Score-CAM, 2020);
- deletion and insertion (Petsiuk et al., RISE, 2018): how fast the answer's probability falls as
  the hottest pixels are blurred away, and rises as they are brought into a blurred picture.

Beside each stand what needs no network: the picture's centre, the breast's centre, the brightest
point, a random point of the breast; and random pixel orders.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from hybrid_export.pointing import BRANCHES, Pointing, point_at
from hybrid_rt import HybridEngine
from hybrid_rt.errors import HybridError, UsageError
from hybrid_rt.files import atomic_path
from hybrid_rt.results.explanation import Explanation

STEPS = 20  # of the deletion and insertion curves
SEED = 1_000_003  # far from the seeds of training runs: other patients
_BLUR = 1 / 10  # of the picture's side: what a deleted pixel becomes

Curve = NDArray[np.float64]


def area(curve: Sequence[float]) -> float:
    """Area under values at equal steps from 0 to 1, by trapezoids."""
    return float(np.mean((np.asarray(curve[:-1]) + np.asarray(curve[1:])) / 2))


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Mean probability of the answer over the share of pixels removed or brought back."""

    name: str
    deletion: list[float]
    insertion: list[float]

    @property
    def deletion_area(self) -> float:
        """Area under the deletion curve; smaller is better."""
        return area(self.deletion)

    @property
    def insertion_area(self) -> float:
        """Area under the insertion curve; larger is better."""
        return area(self.insertion)


@dataclass(frozen=True, kw_only=True)
class Localization:
    """What was measured, and with what. ``found`` of ``lesions`` pictures were called positive."""

    file: str
    engine: str
    patients: int
    seed: int
    lesions: int
    found: int
    lesion_area: float  # share of the picture
    pointing: list[Pointing]
    curves: list[Curves]
    curve_images: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
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
    Raises ModelFileError for a model without heatmaps, UsageError where no lesion was found.
    """
    spec = engine.spec
    if positive is None:
        point = spec.operating_point
        positive = point.positive if point else spec.classes[-1]
    if positive not in spec.classes:
        raise UsageError(f"--positive {positive!r}; expected one of {', '.join(spec.classes)}")
    rows = list(lesion_rows(patients, seed, size))
    explanations = engine.explain([row["image"] for row in rows])
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


def lesion_rows(patients: int, seed: int, size: int) -> Iterator[dict[str, Any]]:
    """Phantom rows with a lesion, with its mask."""
    from hybrid_train.phantom import generate

    for row in generate(patients, seed=seed, size=size, with_masks=True):
        if row["mask"].any():
            yield row


def curves(
    engine: HybridEngine, explanations: Sequence[Explanation], rng: np.random.Generator
) -> list[Curves]:
    """Deletion and insertion of each branch and of random orders, at the model's own input."""
    from hybrid_rt.images import load_pixels

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
                # Equal heat, as where a map is cut off at 0, in random order.
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
    """``[STEPS + 1, h, w, 3]``: from ``start`` to ``end``, pixel after pixel in that order."""
    shape = start.shape
    flat_start, flat_end = start.reshape(-1, 3), end.reshape(-1, 3)
    made = np.repeat(flat_start[None], STEPS + 1, axis=0)
    for i in range(1, STEPS + 1):
        changed = order[: round(len(order) * i / STEPS)]
        made[i, changed] = flat_end[changed]
    return made.reshape(STEPS + 1, *shape)


def write_page(
    path: Path,
    result: Localization,
    found: Sequence[tuple[Explanation, NDArray[np.bool_]]],
    command: str,
) -> None:
    """One self-contained page: tables, curves and overlays with the lesion outlined."""
    from hybrid_export.localization_page import render

    with atomic_path(path) as part:
        part.write_text(render(result, found, command), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0 done, 1 failed, 2 wrong usage."""
    args = _parser().parse_args(argv)
    try:
        if args.patients < 1 or args.seed < 0 or args.curve_images < 1:
            raise UsageError("--patients and --curve-images need 1 or more, --seed 0 or more")
        with HybridEngine(args.model, device="cpu") as engine:
            result, found = measure(
                engine,
                patients=args.patients,
                seed=args.seed,
                positive=args.positive,
                curve_images=args.curve_images,
            )
        command = f"python -m hybrid_export.localization {' '.join(argv or sys.argv[1:])}"
        write_page(args.output, result, found, command)
        with atomic_path(args.output.with_suffix(".json")) as part:
            part.write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    except (HybridError, OSError) as err:
        print(f"localization: {' '.join(str(err).split())}", file=sys.stderr)
        return 2 if isinstance(err, UsageError) else 1
    print(table(result))
    print(f"Wrote {args.output} and {args.output.with_suffix('.json')}")
    return 0


def table(result: Localization) -> str:
    """The pointing game as text."""
    lines = [
        f"{result.found} of {result.lesions} phantoms with a lesion found "
        f"({result.patients} patients, seed {result.seed})",
        f"{'points at the lesion':28s} {'hits':>6s}  95% interval    heat inside",
    ]
    for row in result.pointing:
        low, high = row.hits_interval
        energy = "" if row.energy is None else f"{row.energy:.3f}"
        lines.append(f"{row.name:28s} {row.hits:6.3f}  {low:.3f} to {high:.3f}  {energy:>10s}")
    lines += [
        f"{c.name:28s} deletion {c.deletion_area:.3f}, insertion {c.insertion_area:.3f}"
        for c in result.curves
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hybrid_export.localization",
        description="Measure whether a model's heatmaps point at the lesions of phantoms.",
        epilog="example: python -m hybrid_export.localization model --output localization.html",
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="bundle or file exported with --explain")
    add("--output", type=Path, default=Path("localization.html"), metavar="FILE", help="page")
    add("--patients", type=int, default=100, help="phantom patients, four pictures each (100)")
    add("--seed", type=int, default=SEED, help=f"of the phantoms ({SEED})")
    add("--positive", metavar="CLASS", help="the class that means a lesion")
    add("--curve-images", type=int, default=32, help="pictures of the deletion curves (32)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
