"""hybrid-train: images and labels to a checkpoint, with honest metrics and a report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from hybrid_rt.errors import HybridError, UsageError

EXAMPLES = """examples:
  hybrid-train phantom --preset tiny --output runs/first
  hybrid-train path/to/class_folders --epochs 20 --pretrained
  hybrid-train hongrui/mammogram_v_1 --label BIRADS --null-label "not assessed"
  hybrid-train data.parquet --label cancer --class-weights balanced --ema 0.999
  torchrun --nproc-per-node 8 -m hybrid_train data.parquet --batch-size 512

exit codes: 0 done; 1 failed while running; 2 wrong usage or bad input; 130 stopped by Ctrl-C,
with the state saved"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hybrid-train",
        description="Train a ViT + CNN hybrid image classifier.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "data",
        metavar="DATA",
        help="a folder of class folders (or train/val/test folders of those), a parquet file or a "
        "folder of them, a hub name such as hongrui/mammogram_v_1, or phantom[:N], the built-in "
        "synthetic mammograms",
    )
    add("--output", type=Path, help="run folder (default: runs/TIME)")
    add("--preset", choices=("tiny", "base"), default="base", help="default: base")
    add("--resume", action="store_true", help="go on with the run in --output")
    add("--overwrite", action="store_true", help="replace a run in --output")
    add("--seed", type=int, default=0, help="default: 0; the same seed gives the same run")
    add("--debug", action="store_true", help="show tracebacks")
    add_data(parser.add_argument_group("data"))
    add_network(parser.add_argument_group("network"))
    add_training(parser.add_argument_group("training"))
    add_speed(parser.add_argument_group("speed"))
    return parser


def add_data(group: Any) -> None:
    add = group.add_argument
    add("--label", metavar="COLUMN", help="label column (default: cancer or label)")
    add("--group", metavar="COLUMN", help="kept on one side of the split (default: patient_id)")
    add("--image-column", metavar="COLUMN", help="default: image")
    add("--null-label", metavar="NAME", help="class for rows without a label (default: dropped)")
    add("--class-names", type=names, metavar="A,B", help="names for the classes, in their order")
    add("--val-fraction", type=float, metavar="X", help="default: 0.15")
    add("--test-fraction", type=float, metavar="X", help="default: 0.15")
    add("--on-bad-image", choices=("fail", "skip"), help="an unreadable picture (default: fail)")
    add("--crop", choices=("none", "breast"), help="cut to the breast (default: none)")
    add("--resize", choices=("stretch", "fit", "fill"), help="aspect ratio (default: stretch)")
    add(
        "--high-bit-depth",
        choices=("full", "minmax"),
        help="16-bit pictures: map the type's whole range to 0..255, or the picture's own "
        "(default: full)",
    )
    add(
        "--dicom-window",
        choices=("stored", "minmax"),
        help="DICOM: the file's window, or the picture's own range (default: stored)",
    )


def add_network(group: Any) -> None:
    add = group.add_argument
    add("--vit", metavar="NAME", help="timm ViT (default: vit_base_patch16_224)")
    add("--cnn", metavar="NAME", help="timm CNN (default: resnet50)")
    add("--image-size", type=int, metavar="N", help="pixels a side (default: 224)")
    add("--hidden", type=sizes, metavar="N,N", help="the head's hidden sizes")
    add("--dropout", type=float, metavar="X", help="in the head (default: 0.2)")
    add("--weights", type=Path, metavar="FILE", help="start from a checkpoint, also the notebook's")
    add(
        "--pretrained",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="start from timm's weights: from the hub, or from two files, ViT first",
    )


def add_training(group: Any) -> None:
    add = group.add_argument
    add("--epochs", type=int, metavar="N")
    add("--batch-size", type=int, metavar="N", help="over all processes (default: 32)")
    add("--accumulate", type=int, metavar="N", help="batches a step (default: 1)")
    add("--lr", type=float, metavar="X", help="peak learning rate (default: 1e-4; tiny 1e-3)")
    add("--weight-decay", type=float, metavar="X")
    add("--layer-decay", type=float, metavar="X", help="rate falls by this a layer, 1 is off")
    add("--backbone-lr-scale", type=float, metavar="X", help="rate of the backbones (default: 1)")
    add("--warmup-epochs", type=float, metavar="X")
    add("--freeze-epochs", type=int, metavar="N", help="train the head alone first (default: 0)")
    add("--freeze-batchnorm", action="store_true", default=None)
    add("--clip-norm", type=float, metavar="X", help="default: 1; 0 is off")
    add("--label-smoothing", type=float, metavar="X")
    add("--class-weights", choices=("none", "balanced"), help="weigh the loss (default: none)")
    add("--sampler", choices=("shuffle", "balanced"), help="draw rare classes more often")
    add("--augment", choices=("none", "flip", "standard"), help="default: standard")
    add("--randaugment", type=int, metavar="M", help="timm's RandAugment at magnitude M")
    add("--mixup", type=float, metavar="X", help="alpha (default: 0, off)")
    add("--cutmix", type=float, metavar="X", help="alpha (default: 0, off)")
    add("--ema", type=float, metavar="X", help="average the weights with this decay")
    add("--patience", type=int, metavar="N", help="stop after N epochs without a better one")
    add(
        "--threshold",
        metavar="RULE",
        help="operating point: sensitivity=0.9, specificity=0.9, youden (default) or a number",
    )


def add_speed(group: Any) -> None:
    add = group.add_argument
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="default: auto")
    add("--compile", action="store_true", default=None, help="torch.compile the network")
    add("--workers", type=int, metavar="N", help="decoding processes (default: by the cores)")
    add(
        "--cache-gib", type=float, metavar="X", help="keep pixels in memory up to this (default: 4)"
    )


def names(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return parts


def sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers such as 256,64") from err


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the exit codes in its help."""
    args = make_parser().parse_args(argv)
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return train(args, "hybrid-train " + shlex.join(arguments))
    except HybridError as err:
        if args.debug:
            traceback.print_exc()
        print(f"hybrid-train: {one_line(err)}", file=sys.stderr)
        return 2 if isinstance(err, ValueError) else 1
    except OSError as err:
        if args.debug:
            traceback.print_exc()
        print(f"hybrid-train: {describe_os_error(err)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hybrid-train: stopped before training began", file=sys.stderr)
        return 130


def train(args: argparse.Namespace, command: str) -> int:
    from dataclasses import fields

    from hybrid_train.config import PRESETS, TrainConfig
    from hybrid_train.data import DataOptions
    from hybrid_train.fit import RunOptions, fit

    known = {f.name for f in fields(TrainConfig)}
    changes = {k: v for k, v in vars(args).items() if k in known and v is not None}
    config = PRESETS[args.preset].replace(**changes)
    if args.resume and args.output is None:
        raise UsageError("--resume needs --output, the folder of the run to go on with")
    if args.resume and args.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it; give one")
    if args.weights is not None and args.pretrained is not None:
        raise UsageError("--weights and --pretrained both give the start; use one")
    options = RunOptions(
        data=args.data,
        output=args.output or Path("runs") / time.strftime("%Y%m%d-%H%M%S"),
        data_options=DataOptions(
            label=args.label,
            group=args.group,
            image=args.image_column,
            null_label=args.null_label,
            class_names=args.class_names,
            seed=args.seed,
        ),
        resume=args.resume,
        overwrite=args.overwrite,
        weights=args.weights,
        given=frozenset(changes),
        pretrained=args.pretrained,
        command=command,
    )
    done = fit(options, config, lambda text: print(text, flush=True))
    return 130 if done is None and int(os.environ.get("RANK", "0")) == 0 else 0


def describe_os_error(err: OSError) -> str:
    import errno

    if err.errno == errno.ENOSPC:
        return f"the disk is full ({err.filename}); the last good checkpoint is whole: free space "\
            "and use --resume"  # fmt: skip
    return one_line(err)


def one_line(err: BaseException) -> str:
    return " ".join(str(err).split())


if __name__ == "__main__":
    sys.exit(main())
