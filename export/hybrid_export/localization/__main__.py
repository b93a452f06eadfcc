"""Measure how well the heatmaps point at lesions, and write a page about it.

python -m hybrid_export.localization model --output localization.html
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hybrid_export.localization.measure import SEED, Localization, measure
from hybrid_export.localization.page import render
from hybrid_rt import HybridEngine
from hybrid_rt.errors import HybridError, UsageError
from hybrid_rt.files import atomic_path


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
        with atomic_path(args.output) as temporary:
            temporary.write_text(render(result, found, command), encoding="utf-8")
        with atomic_path(args.output.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    except (HybridError, OSError) as err:
        print(f"localization: {' '.join(str(err).split())}", file=sys.stderr)
        return 2 if isinstance(err, UsageError) else 1
    print(table(result))
    print(f"Wrote {args.output} and {args.output.with_suffix('.json')}")
    return 0


def table(result: Localization) -> str:
    """Return the pointing game as text."""
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
    add("--patients", type=int, default=100, help="phantom patients, four images each (100)")
    add("--seed", type=int, default=SEED, help=f"of the phantoms ({SEED})")
    add("--positive", metavar="CLASS", help="the class that means a lesion")
    add("--curve-images", type=int, default=32, help="images of the deletion curves (32)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
