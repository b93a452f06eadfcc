"""A hybrid small enough to trace in seconds, with weights of the size that training reaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hybrid_rt.spec import Head, ModelSpec, OperatingPoint, Preprocess
from hybrid_train.model.hybrid import HybridClassifier, describe_branches

SIZE = 48


def make_model(
    vit: str = "test_vit", cnn: str = "test_resnet", size: int = SIZE, seed: int = 0
) -> tuple[HybridClassifier, ModelSpec]:
    """Return a hybrid with normalization statistics and outputs that differ, and its spec."""
    torch.manual_seed(seed)
    branches = describe_branches(vit, cnn, (size, size))
    spec = ModelSpec(
        classes=("benign", "malignant", "normal"),
        preprocess=Preprocess(height=size, width=size),
        vit=branches[0],
        cnn=branches[1],
        head=Head(hidden=(32, 16, 16)),
        temperature=1.7,
        operating_point=OperatingPoint(
            positive="malignant", threshold=0.4, criterion="sensitivity>=0.9"
        ),
    )
    model = HybridClassifier(spec).eval()
    enliven(model, spec)
    return model, spec


def enliven(
    model: HybridClassifier, spec: ModelSpec, gain: float = 1.2, residual: float = 1.0
) -> None:
    """Set weights of a size that training reaches, in place.

    With random initial weights all images have nearly the same outputs. A deep random network also
    amplifies every rounding if ``gain`` is large, or if ``residual``, the share that a bottleneck
    block adds, is not as small as after training.
    """
    height, width = spec.preprocess.height, spec.preprocess.width
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
            elif isinstance(module, torch.nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
            elif isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, 0, gain * module.in_features**-0.5)
                torch.nn.init.normal_(module.bias, 0, 0.1)
        for module in model.modules():
            if hasattr(module, "bn3"):
                module.bn3.weight.mul_(residual)
        model.train()
        for _ in range(4):  # batch statistics that fit the weights
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 0.5
            model(torch.rand(16, 3, height, width))
        model.eval()


def write_images(folder: Path, count: int, seed: int = 0) -> Path:
    """Write smooth random images to two class folders, half of them each; return their parent."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        name = ("benign", "malignant")[i % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (3 + i % 5, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((72, 60)).save(folder / name / f"{i:03}.png")
    return folder
