"""Write synthetic mammograms as parquet files.

python -m hybrid_train.phantom phantoms --patients 100 --preview page.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hybrid_rt.errors import HybridError, UsageError
from hybrid_rt.files import atomic_path
from hybrid_train.phantom.dataset import preview, write_parquet
from hybrid_train.phantom.generate import IMAGES_PER_PATIENT, generate


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hybrid_train.phantom",
        description="Write synthetic mammograms as parquet, with the hub dataset's columns.",
        epilog="example: python -m hybrid_train.phantom phantoms --patients 100 --preview page.png",
    )
    parser.add_argument("output", metavar="FOLDER", type=Path, help="folder for the parquet files")
    parser.add_argument("--patients", type=int, default=250, help="four images each (250)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=512, help="pixels a side (512)")
    parser.add_argument("--difficulty", type=float, default=1.0, help="divides the contrast (1.0)")
    parser.add_argument("--prevalence", type=float, default=0.35, help="of lesions (0.35)")
    parser.add_argument("--shards", type=int, default=1, help="number of files (1)")
    parser.add_argument("--preview", type=Path, metavar="FILE", help="also write a page of images")
    args = parser.parse_args(argv)
    options = {"size": args.size, "difficulty": args.difficulty, "prevalence": args.prevalence}
    try:
        if args.preview and args.preview.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise UsageError(f"--preview {args.preview}; expected a name ending in .png or .jpg")
        files = write_parquet(
            args.output, patients=args.patients, seed=args.seed, shards=args.shards, **options
        )
        if args.preview:
            rows = list(generate(min(args.patients, 8), seed=args.seed, **options))
            with atomic_path(args.preview) as temporary:
                preview(rows).save(temporary, quality=88)  # the quality is for JPEG only
    except (HybridError, OSError) as err:
        print(f"phantom: {err}", file=sys.stderr)
        return 2 if isinstance(err, UsageError) else 1
    print(f"{args.patients * IMAGES_PER_PATIENT} images in {', '.join(map(str, files))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
