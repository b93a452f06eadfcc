"""The settings of a training run in one frozen dataclass, and the two presets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from hybrid_rt.errors import UsageError
from hybrid_train.data.samples import DataOptions

Precision = Literal["auto", "fp32", "bf16", "fp16"]

#: Least and greatest value of each numeric setting.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("epochs", "batch_size", "accumulate", "image_size"), (1, math.inf)),
    **dict.fromkeys(
        (
            "lr",
            "backbone_lr_scale",
            "weight_decay",
            "warmup_epochs",
            "freeze_epochs",
            "clip_norm",
            "mixup",
            "cutmix",
            "patience",
            "workers",
            "cache_gib",
            "seed",
        ),
        (0, math.inf),
    ),
    "layer_decay": (0, 1),
    "randaugment": (0, 10),  # timm's scale of magnitudes
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a run; the command line's options have the same names."""

    vit: str = "vit_base_patch16_224"
    cnn: str = "resnet50"
    image_size: int = 224
    hidden: tuple[int, ...] = (1024, 512, 256, 128, 64)
    dropout: float = 0.2
    crop: Literal["none", "breast"] = "none"
    resize: Literal["stretch", "fit", "fill"] = "stretch"
    high_bit_depth: Literal["full", "minmax"] = "full"
    dicom_window: Literal["stored", "minmax"] = "stored"
    epochs: int = 20
    batch_size: int = 32  # over all processes
    accumulate: int = 1  # batches a step
    lr: float = 1e-4
    backbone_lr_scale: float = 1.0
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    warmup_epochs: float = 1.0
    freeze_epochs: int = 0
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    mixup: float = 0.0
    cutmix: float = 0.0
    randaugment: int = 0  # magnitude; 0 is off
    augment: Literal["none", "flip", "standard"] = "standard"
    ema: float = 0.0  # decay; 0 is off
    patience: int = 0  # epochs without a better validation; 0 never stops early
    freeze_batchnorm: bool = False
    precision: Precision = "auto"
    compile: bool = False
    channels_last: bool = True
    workers: int | None = None
    cache_gib: float = 4.0
    on_bad_image: Literal["fail", "skip"] = "fail"
    threshold: str = "youden"
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (lowest, highest) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and lowest <= value <= highest):
                raise UsageError(f"{option(name)} {value}; expected {expected(lowest, highest)}")
        for name in ("label_smoothing", "ema", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"{option(name)} {getattr(self, name)}; expected 0 or more, below 1"
                )
        for name in ("lr", "layer_decay"):
            if getattr(self, name) == 0:
                raise UsageError(f"{option(name)} 0; expected more")
        if not (0 < self.val_fraction < 1 and 0 <= self.test_fraction < 1):
            raise UsageError(
                f"--val-fraction {self.val_fraction}, --test-fraction {self.test_fraction}; "
                "expected shares between 0 and 1, of which only that for the test may be 0"
            )
        if self.val_fraction + self.test_fraction > 0.9:
            raise UsageError(
                f"--val-fraction {self.val_fraction} and --test-fraction {self.test_fraction} "
                "leave too little to train on; expected 0.9 together or less"
            )
        if any(size < 1 for size in self.hidden):
            raise UsageError(f"--hidden {self.hidden}; expected sizes of 1 or more")
        parse_criterion(self.threshold)

    def batch_size_for(self, images: int, processes: int) -> int:
        """Return the global batch size: at most the number of images.

        Raises:
            UsageError: The size is no multiple of the processes, or of pairs for mixup and cutmix.
        """
        mixing = self.mixup > 0 or self.cutmix > 0
        unit = processes * (2 if mixing else 1)
        if self.batch_size % unit:
            raise UsageError(
                f"--batch-size {self.batch_size} with {processes} process(es)"
                + (" and mixup or cutmix, which pair images" if mixing else "")
                + f"; expected a multiple of {unit}"
            )
        return min(self.batch_size, max(unit, images - images % unit))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)

    def replace(self, **changes: Any) -> RunConfig:
        """Return a copy with changed settings; raises UsageError for an unknown name."""
        unknown = sorted(set(changes) - {f.name for f in fields(self)})
        if unknown:
            known = ", ".join(f.name for f in fields(self))
            raise UsageError(f"unknown setting {unknown[0]!r}; known are {known}")
        return replace(self, **changes)


def option(name: str) -> str:
    """Return a setting as the command line spells it."""
    return "--" + name.replace("_", "-")


def expected(lowest: float, highest: float) -> str:
    """Return a range in words."""
    return f"{lowest} or more" if highest == math.inf else f"{lowest} to {highest}"


def parse_criterion(criterion: str) -> tuple[str, float]:
    """Return the kind (sensitivity, specificity, youden or fixed) and its value."""
    name, equals, number = criterion.partition("=")
    if criterion == "youden":
        return "youden", 0.0
    try:
        value = float(number if equals else name)
    except ValueError:
        value = -1.0
    if not equals and 0 <= value <= 1:
        return "fixed", value
    if name in ("sensitivity", "specificity") and 0 < value <= 1:
        return name, value
    raise UsageError(
        f"threshold rule {criterion!r}; expected sensitivity=0.9, specificity=0.9, youden or a "
        "probability such as 0.5"
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The input, the start and the output of a run."""

    data: str
    output: Path
    data_options: DataOptions
    resume: bool = False
    overwrite: bool = False
    weights: Path | None = None
    #: Settings that the user set; a checkpoint keeps its own for the others.
    given: frozenset[str] = frozenset()
    #: None: random weights. Empty: timm's from the hub. Else files, ViT first.
    pretrained: Sequence[Path] | None = None
    command: str = ""


PRESETS = {
    # The networks of the paper and the notebook.
    "base": RunConfig(),
    # Learns the phantoms from random weights on two CPU cores in a minute or two.
    "tiny": RunConfig(
        vit="test_vit",
        cnn="test_resnet",
        image_size=160,
        hidden=(64,),
        dropout=0.1,
        epochs=9,
        batch_size=16,
        lr=1e-3,
        weight_decay=0.02,
        warmup_epochs=0.5,
        augment="flip",
    ),
}
