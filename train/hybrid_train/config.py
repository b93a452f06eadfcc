"""What a training run does, in one frozen description, and the two presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from hybrid_rt.errors import UsageError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a run; the command line's options by the same names."""

    vit: str = "vit_base_patch16_224"
    cnn: str = "resnet50"
    image_size: int = 224
    hidden: tuple[int, ...] = (1024, 512, 256, 128, 64)
    dropout: float = 0.2
    crop: Literal["none", "breast"] = "none"
    resize: Literal["stretch", "fit", "fill"] = "stretch"
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
        for name in ("epochs", "batch_size", "accumulate", "image_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not self.lr > 0:
            raise UsageError(f"lr is {self.lr}; expected a positive number")
        for name in ("label_smoothing", "ema", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected 0 or more, below 1")
        if not (0 < self.val_fraction < 1 and 0 <= self.test_fraction < 1):
            raise UsageError("val_fraction and test_fraction are shares between 0 and 1")
        if self.val_fraction + self.test_fraction > 0.9:
            raise UsageError("val_fraction and test_fraction leave too little to train on")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def replace(self, **changes: Any) -> TrainConfig:
        unknown = sorted(set(changes) - {f.name for f in fields(self)})
        if unknown:
            known = ", ".join(f.name for f in fields(self))
            raise UsageError(f"unknown setting {unknown[0]!r}; known are {known}")
        return replace(self, **changes)


PRESETS = {
    # The network of the paper and the notebook.
    "base": TrainConfig(),
    # Small enough to learn the phantoms from nothing on two CPU cores in a minute or two.
    "tiny": TrainConfig(
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
