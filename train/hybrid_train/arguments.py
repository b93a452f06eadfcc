"""The options of hybrid-train, with an example of each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

#: Each option is used in one of these: a test reads them.
EXAMPLES = """examples:
  the first run, on the built-in synthetic mammograms:
    hybrid-train phantom --preset tiny --output runs/first --seed 1 --overwrite
  photos/CLASS/*.jpg, with timm's weights from the hub, or from files:
    hybrid-train photos/ --pretrained --epochs 20 --patience 5
    hybrid-train photos/ --pretrained vit.safetensors resnet.safetensors --image-size 384
  the hub's mammograms, of which 2 in 100 show a cancer:
    hybrid-train hongrui/mammogram_v_1 --label cancer --crop breast --class-weights balanced \\
        --ema 0.999 --threshold sensitivity=0.9
    hybrid-train hongrui/mammogram_v_1 --label BIRADS --null-label "not assessed"
  a table of your own:
    hybrid-train data.parquet --image-column scan --label grade --class-names low,high \\
        --group subject --val-fraction 0.1 --test-fraction 0.2 --on-bad-image skip
  16-bit images and DICOM that use only some of their range:
    hybrid-train scans/ --high-bit-depth minmax --dicom-window minmax --resize fit
  other networks:
    hybrid-train photos/ --vit vit_small_patch16_224 --cnn resnet18 --hidden 256,64 --dropout 0.3
  gentle fine-tuning:
    hybrid-train photos/ --pretrained --lr 5e-5 --weight-decay 0.05 --layer-decay 0.75 \\
        --backbone-lr-scale 0.5 --warmup-epochs 2 --freeze-epochs 1 --freeze-batchnorm \\
        --clip-norm 1
  little data:
    hybrid-train photos/ --augment standard --randaugment 5 --mixup 0.2 --cutmix 1 \\
        --label-smoothing 0.1 --sampler balanced
  memory and speed:
    hybrid-train photos/ --batch-size 16 --accumulate 4 --precision bf16 --compile \\
        --workers 8 --cache-gib 16
  eight GPUs:
    torchrun --nproc-per-node 8 -m hybrid_train data.parquet --batch-size 512
  after an interruption, with the same options:
    hybrid-train photos/ --output runs/a --resume
  from a checkpoint, with a traceback if it fails:
    hybrid-train photos/ --weights birads_classification.pth --debug

exit codes: 0 done; 1 failed while running; 2 wrong usage or bad input; 130 stopped by Ctrl-C,
with the state saved"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of hybrid-train; the defaults are in the presets."""
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
    add("--output", type=Path, metavar="FOLDER", help="run folder (default: runs/TIME)")
    add(
        "--preset",
        choices=("tiny", "base"),
        default="base",
        help="base: vit_base_patch16_224 + resnet50; tiny: small networks for demos and tests "
        "(default: base)",
    )
    add("--resume", action="store_true", help="continue the run in --output")
    add("--overwrite", action="store_true", help="replace a run in --output")
    add("--seed", type=int, metavar="N", default=0, help="equal seeds, equal runs (default: 0)")
    add("--debug", action="store_true", help="show tracebacks")
    add_data(parser.add_argument_group("data"))
    add_network(parser.add_argument_group("network"))
    add_training(parser.add_argument_group("training"))
    add_speed(parser.add_argument_group("speed"))
    return parser


def add_data(group: Any) -> None:
    """Add the options of the data and its preprocessing."""
    add = group.add_argument
    add("--label", metavar="COLUMN", help="label column (default: cancer or label)")
    add("--group", metavar="COLUMN", help="kept on one side of the split (default: patient_id)")
    add("--image-column", metavar="COLUMN", help="column of images (default: image)")
    add("--null-label", metavar="NAME", help="class for rows without a label (default: dropped)")
    add("--class-names", type=names, metavar="A,B", help="names for the classes, in their order")
    add("--val-fraction", type=float, metavar="X", help="share for validation (default: 0.15)")
    add("--test-fraction", type=float, metavar="X", help="share for the test (default: 0.15)")
    add("--on-bad-image", choices=("fail", "skip"), help="an unreadable image (default: fail)")
    add("--crop", choices=("none", "breast"), help="cut to the breast (default: none)")
    add("--resize", choices=("stretch", "fit", "fill"), help="aspect ratio (default: stretch)")
    add(
        "--high-bit-depth",
        choices=("full", "minmax"),
        help="16-bit images: map the type's complete range to 0..255, or the image's own "
        "(default: full)",
    )
    add(
        "--dicom-window",
        choices=("stored", "minmax"),
        help="DICOM: the file's window, or the image's own range (default: stored)",
    )


def add_network(group: Any) -> None:
    """Add the options of the network and its start."""
    add = group.add_argument
    add("--vit", metavar="NAME", help="timm ViT (default: vit_base_patch16_224)")
    add("--cnn", metavar="NAME", help="timm CNN (default: resnet50)")
    add("--image-size", type=int, metavar="N", help="pixels a side (default: 224; tiny: 160)")
    add(
        "--hidden",
        type=sizes,
        metavar="N,N",
        help="the head's hidden sizes (default: 1024,512,256,128,64; tiny: 64)",
    )
    add("--dropout", type=float, metavar="X", help="in the head (default: 0.2; tiny: 0.1)")
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="start from a checkpoint, also one of the notebook",
    )
    add(
        "--pretrained",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="start from timm's weights: from the hub, or from two files, ViT first",
    )


def add_training(group: Any) -> None:
    """Add the options of the optimization."""
    add = group.add_argument
    add("--epochs", type=int, metavar="N", help="default: 20; tiny: 9")
    add("--batch-size", type=int, metavar="N", help="over all processes (default: 32; tiny: 16)")
    add("--accumulate", type=int, metavar="N", help="batches a step (default: 1)")
    add("--lr", type=float, metavar="X", help="peak learning rate (default: 1e-4; tiny: 1e-3)")
    add("--weight-decay", type=float, metavar="X", help="AdamW's (default: 0.05; tiny: 0.02)")
    add("--layer-decay", type=float, metavar="X", help="rate falls by this a layer (default: 1)")
    add("--backbone-lr-scale", type=float, metavar="X", help="rate of the backbones (default: 1)")
    add(
        "--warmup-epochs",
        type=float,
        metavar="X",
        help="the rate rises from 0, then falls with a cosine (default: 1; tiny: 0.5)",
    )
    add("--freeze-epochs", type=int, metavar="N", help="train the head alone first (default: 0)")
    add(
        "--freeze-batchnorm",
        action="store_true",
        default=None,
        help="keep the running statistics: for small batches",
    )
    add("--clip-norm", type=float, metavar="X", help="of the gradient; 0 is off (default: 1)")
    add("--label-smoothing", type=float, metavar="X", help="default: 0")
    add("--class-weights", choices=("none", "balanced"), help="weigh the loss (default: none)")
    add("--sampler", choices=("shuffle", "balanced"), help="draw rare classes more often")
    add(
        "--augment",
        choices=("none", "flip", "standard"),
        help="standard also rotates, scales, shifts and changes brightness (default: standard; "
        "tiny: flip)",
    )
    add("--randaugment", type=int, metavar="M", help="timm's RandAugment, magnitude 0 to 10")
    add("--mixup", type=float, metavar="X", help="alpha (default: 0, off)")
    add("--cutmix", type=float, metavar="X", help="alpha (default: 0, off)")
    add("--ema", type=float, metavar="X", help="average the weights with this decay (default: 0)")
    add("--patience", type=int, metavar="N", help="stop after N epochs without a better one")
    add(
        "--threshold",
        metavar="RULE",
        help="operating point: sensitivity=0.9, specificity=0.9, youden (default) or a number",
    )


def add_speed(group: Any) -> None:
    """Add the options of precision, processes and memory."""
    add = group.add_argument
    add(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="auto is bf16 if it is fast, else fp16 on a GPU and fp32 on a CPU (default: auto)",
    )
    add("--compile", action="store_true", default=None, help="torch.compile the network")
    add("--workers", type=int, metavar="N", help="decoding processes (default: by the cores)")
    add(
        "--cache-gib", type=float, metavar="X", help="keep pixels in memory up to this (default: 4)"
    )


def names(text: str) -> tuple[str, ...]:
    """Parse comma-separated names."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


def sizes(text: str) -> tuple[int, ...]:
    """Parse comma-separated whole numbers."""
    try:
        return tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers such as 256,64") from err
