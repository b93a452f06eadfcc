"""hybrid-export: a checkpoint to ONNX and TensorRT files that are proven to equal PyTorch."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from pathlib import Path

from hybrid_rt.errors import (
    CheckpointError,
    DataError,
    HybridError,
    ImageError,
    SpecError,
    UsageError,
)

_BAD_INPUT = (UsageError, CheckpointError, DataError, ImageError, SpecError)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0 done, 1 failed (parity too), 2 wrong usage or bad input."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("hybrid-export: interrupted; nothing was changed", file=sys.stderr)
        return 1
    except (HybridError, OSError) as err:
        if args.debug:
            traceback.print_exc()
        print(f"hybrid-export: {' '.join(str(err).split())}", file=sys.stderr)
        return 2 if isinstance(err, _BAD_INPUT) else 1


def _run(args: argparse.Namespace) -> int:
    from hybrid_export.options import ExportOptions
    from hybrid_export.pipeline import export

    options = ExportOptions(
        output=args.output,
        opset=args.opset,
        verify=args.verify,
        verify_limit=args.verify_limit,
    )
    bundle = export(args.checkpoint, options, say=lambda text: print(text, flush=True))
    folder = bundle.folder or args.output
    for name, entry in bundle.files.items():
        print(f"Wrote {folder / name} ({entry.bytes / 1e6:.1f} MB, {entry.precision})")
    best = next(iter(bundle.files))
    model = os.path.relpath(folder / best)
    print(f"Next: hybrid-predict {shlex.quote(model)} IMAGE")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hybrid-export",
        description="Export a trained hybrid to files that run without PyTorch, each certified to "
        "give PyTorch's answers.",
        epilog="example: hybrid-export runs/mine --output model",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=Path,
        metavar="CHECKPOINT",
        help="run folder, .safetensors, or the original notebook's .pth (default: newest run)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="folder (default: this one)"
    )
    parser.add_argument(
        "--verify",
        metavar="DATA",
        help="images to certify on: a folder, class folders or parquet (default: the run's "
        "validation images)",
    )
    parser.add_argument(
        "--verify-limit", type=int, default=32, metavar="N", help="at most N of them (default: 32)"
    )
    parser.add_argument("--opset", type=int, default=18, help="ONNX opset (default: 18)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
