"""hybrid-export: a checkpoint to ONNX and TensorRT files, each validated against PyTorch."""

from __future__ import annotations

import argparse
import sys
import traceback
from dataclasses import fields
from pathlib import Path

from hybrid_export.options import ExportOptions
from hybrid_export.parity.dataset import check_calibration
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
    """Run the command; return 0 done, 1 failed (parity too), 2 wrong usage or bad input."""
    args = _parser().parse_args(argv)
    try:
        _run(args)
    except KeyboardInterrupt:
        print("hybrid-export: interrupted; nothing was changed", file=sys.stderr)
        return 1
    except (HybridError, OSError) as err:
        if args.debug:
            traceback.print_exc()
        print(f"hybrid-export: {' '.join(str(err).split())}", file=sys.stderr)
        return 2 if isinstance(err, _BAD_INPUT) else 1
    return 0


def _run(args: argparse.Namespace) -> None:
    values = {f.name: getattr(args, f.name) for f in fields(ExportOptions)}
    if args.compute_capabilities:
        values["plans"] = "tensorrt_rtx"
    options = ExportOptions(**values)
    if options.int8:
        check_calibration(args.checkpoint, options.calibrate)
    from hybrid_export.pipeline import export  # imports PyTorch, which takes seconds

    export(args.checkpoint, options, log=lambda text: print(text, flush=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hybrid-export",
        description="Export a trained hybrid to files that run without PyTorch, each with a "
        "parity report.",
        epilog="example: hybrid-export runs/mine --output model --fp16 --tensorrt-rtx SM89",
    )
    add = parser.add_argument
    add(
        "checkpoint",
        nargs="?",
        type=Path,
        metavar="CHECKPOINT",
        help="run folder, .safetensors, or the original notebook's .pth (default: newest run)",
    )
    add("--output", type=Path, default=Path(), metavar="DIR", help="folder (default: this one)")
    add("--explain", action="store_true", help="add two heatmaps to the outputs")
    add("--opset", type=int, default=17, metavar="N", help="ONNX opset, 17 to 23 (default: 17)")
    add("--triton", type=Path, metavar="DIR", help="also write a Triton model repository")
    add("--debug", action="store_true", help="show the traceback of an error")

    precision = parser.add_argument_group("precision (fp32 is always written)")
    precision.add_argument("--fp16", action="store_true", help="write model.fp16.onnx")
    precision.add_argument("--bf16", action="store_true", help="write model.bf16.onnx")
    precision.add_argument("--int8", action="store_true", help="write model.int8.onnx")
    precision.add_argument(
        "--calibrate",
        metavar="DATA",
        help="images to measure --int8's ranges on, as for --verify (default: the training images "
        "that the run kept)",
    )

    verify = parser.add_argument_group("parity report")
    verify.add_argument(
        "--verify",
        metavar="DATA",
        help="images to compare on: a folder, class folders or parquet (default: the run's "
        "validation images)",
    )
    verify.add_argument(
        "--verify-limit", type=int, default=32, metavar="N", help="at most N of them (default: 32)"
    )

    plans = parser.add_argument_group("TensorRT plans (default: one if a GPU is here)")
    library = plans.add_mutually_exclusive_group()
    library.add_argument(
        "--tensorrt",
        dest="plans",
        action="store_const",
        const="tensorrt",
        default="auto",
        help="build model.plan for this machine's GPU, or fail",
    )
    library.add_argument(
        "--tensorrt-rtx",
        dest="compute_capabilities",
        type=_compute_capabilities,
        default=(),
        metavar="SM89[,SM120]",
        help="build with TensorRT for RTX for these GPUs; none is needed here",
    )
    library.add_argument(
        "--no-tensorrt",
        dest="plans",
        action="store_const",
        const="none",
        help="build no engine",
    )
    plans.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="largest batch (default: 8)"
    )
    plans.add_argument(
        "--opt-batch", type=int, metavar="N", help="batch to be fastest at (default: the largest)"
    )
    plans.add_argument(
        "--workspace",
        dest="workspace_mib",
        type=int,
        metavar="MIB",
        help="limit of scratch memory",
    )
    plans.add_argument("--timing-cache", type=Path, metavar="FILE", help="read and updated")
    plans.add_argument(
        "--version-compatible", action="store_true", help="runs on later TensorRT versions too"
    )
    plans.add_argument(
        "--hardware-compatible", action="store_true", help="runs on other Ampere and later GPUs"
    )
    return parser


def _compute_capabilities(text: str) -> tuple[str, ...]:
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    if not names or any(not n.startswith("SM") or not n[2:].isdigit() for n in names):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected such as SM89 or SM89,SM120")
    return tuple(dict.fromkeys(names))


if __name__ == "__main__":
    sys.exit(main())
