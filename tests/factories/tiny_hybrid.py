"""A hybrid small enough to trace in seconds, with weights as lively as training makes them."""

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
    """A hybrid whose normalizations have statistics and whose outputs depend on the image."""
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
    """Weights of a size that training reaches: random initial ones return nearly the same for all.

    A deep random network is chaotic: with a large ``gain`` it amplifies every rounding, and so it
    does unless ``residual``, what a bottleneck block adds, is small, as training has it.
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
    """Smooth random images, half of them in each of two class folders."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        name = ("benign", "malignant")[i % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (3 + i % 5, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((72, 60)).save(folder / name / f"{i:03}.png")
    return folder
