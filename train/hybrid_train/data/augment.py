"""Augment a batch on its own device, with operations that fit greyscale images.

Random numbers are drawn for the global batch from (seed, epoch, step), and each process takes
its share. An image is therefore changed in the same way on any number of processes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: timm's operations that mean something on a greyscale image; colour and posterizing are left out.
GREYSCALE_OPERATIONS = [
    "AutoContrast",
    "Equalize",
    "Rotate",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
]


def augment(
    images: Tensor, strength: str, random: np.random.Generator, share: slice, batch: int
) -> Tensor:
    """Return changed copies of ``images``, float ``[b, 3, h, w]`` in 0..1.

    "flip" mirrors at both axes. "standard" also rotates up to 15 degrees, scales 0.9 to 1.1,
    shifts up to 5% and changes brightness and contrast up to 10%.

    Args:
        images: The images of this process.
        strength: "none", "flip" or "standard".
        random: Draws for the global batch.
        share: The places of ``images`` in the global batch.
        batch: The size of the global batch.
    """
    if strength == "none":
        return images
    draws = torch.from_numpy(random.random((batch, 8), np.float32))[share][: len(images)]
    draws = draws.to(images.device)
    flip_x = 1 - 2 * (draws[:, 0] < 0.5).float()
    flip_y = 1 - 2 * (draws[:, 1] < 0.5).float()
    if strength == "flip":
        images = torch.where((flip_x < 0).view(-1, 1, 1, 1), images.flip(3), images)
        return torch.where((flip_y < 0).view(-1, 1, 1, 1), images.flip(2), images)
    angle = (draws[:, 2] - 0.5) * 2 * np.pi * 15 / 180
    scale = 0.9 + 0.2 * draws[:, 3]
    shift = (draws[:, 4:6] - 0.5) * 0.2  # of half the side
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = torch.stack(
        [
            torch.stack([cos * flip_x, -sin * flip_y, shift[:, 0]], 1),
            torch.stack([sin * flip_x, cos * flip_y, shift[:, 1]], 1),
        ],
        1,
    )  # [b, 2, 3]
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    contrast = (0.9 + 0.2 * draws[:, 6]).view(-1, 1, 1, 1)
    brightness = ((draws[:, 7] - 0.5) * 0.2).view(-1, 1, 1, 1)
    return (images * contrast + brightness * images.mean((1, 2, 3), keepdim=True)).clamp(0, 1)


def rand_augment(images: Tensor, magnitude: int, seed: list[int], share: slice) -> Tensor:
    """Apply timm's RandAugment, two operations an image, to float ``[b, 3, h, w]`` in 0..1."""
    import random

    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform

    transform = rand_augment_transform(
        f"rand-m{magnitude}-n2", {"translate_pct": 0.1}, transforms=GREYSCALE_OPERATIONS
    )
    arrays = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    python_state, numpy_state = random.getstate(), np.random.get_state()  # timm draws from both
    try:
        changed = []
        places = range(len(arrays) * (share.step or 1))[share]  # in the global batch
        for i, array in zip(places, arrays, strict=True):
            mixed = int(np.random.SeedSequence([*seed, i]).generate_state(1)[0])
            random.seed(mixed)
            np.random.seed(mixed)
            changed.append(np.asarray(transform(Image.fromarray(array))))
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
    result = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)
    return result.to(images.device).float() / 255


def mixer(mixup: float, cutmix: float, smoothing: float, classes: int) -> Any:
    """Return timm's Mixup for ``(images, labels)``; None if mixup and cutmix are off."""
    if mixup <= 0 and cutmix <= 0:
        return None
    from timm.data import Mixup

    return Mixup(
        mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=smoothing, num_classes=classes
    )
