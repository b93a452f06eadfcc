"""The network: a ViT and a CNN from timm side by side, their features concatenated, an MLP head.

model = HybridClassifier(spec)
logits = model(images)  # float [batch, 3, height, width] in 0..1
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from hybrid_rt.errors import UsageError
from hybrid_rt.spec import Branch, Head, ModelSpec


class InputNorm(nn.Module):
    """Normalization (x - mean) / std per channel, without saved state: the spec has it."""

    mean: Tensor
    std: Tensor

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(branch.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(branch.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class HybridClassifier(nn.Module):
    """ViT + CNN hybrid described by a ModelSpec.

    Input is float ``[batch, 3, height, width]`` in 0..1, RGB. Each branch normalizes it with its
    own mean and standard deviation. The architecture follows Scientific Reports 2024,
    s41598-024-54846-8; the head is the original notebook's.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        size = (spec.preprocess.height, spec.preprocess.width)
        self.vit_norm = InputNorm(spec.vit)
        self.cnn_norm = InputNorm(spec.cnn)
        self.vit = create_vit(spec.vit.model, size)
        self.cnn = create_cnn(spec.cnn.model)
        for name, backbone, branch in (("vit", self.vit, spec.vit), ("cnn", self.cnn, spec.cnn)):
            if backbone.num_features != branch.features:
                raise UsageError(
                    f"{name} {branch.model} has {backbone.num_features} features, "
                    f"but its spec has {branch.features}"
                )
        self.head = create_head(spec.head, spec.num_features, len(spec.classes))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return features ``[batch, vit + cnn]``, the class token first."""
        tokens = self.vit.forward_features(self.vit_norm(images))
        vit = self.vit.forward_head(tokens, pre_logits=True)
        cnn = self.cnn(self.cnn_norm(images))
        return torch.cat((vit, cnn), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, classes]``."""
        logits: Tensor = self.head(self.forward_features(images))
        return logits


def create_vit(name: str, size: tuple[int, int]) -> Any:  # timm's types are incomplete
    """Return a timm ViT, pooled by its class token, without a classifier."""
    try:
        model = timm.create_model(name, num_classes=0, img_size=size, global_pool="token")
    except (RuntimeError, TypeError, AssertionError) as err:
        raise UsageError(f"cannot make the ViT {name!r} at {size[0]}x{size[1]}: {err}") from err
    if not isinstance(model, timm.models.VisionTransformer):
        raise UsageError(f"{name!r} is not a plain ViT; try vit_base_patch16_224")
    patch = model.patch_embed.patch_size
    if size[0] % patch[0] or size[1] % patch[1]:
        raise UsageError(
            f"{size[0]}x{size[1]} pixels cannot be cut into the {patch[0]}x{patch[1]} patches of "
            f"{name}; expected a multiple of {patch[0]}"
        )
    return model


def create_cnn(name: str) -> Any:
    """Return a timm CNN, pooled by global average, without a classifier."""
    try:
        model = timm.create_model(name, num_classes=0, global_pool="avg")
    except (RuntimeError, TypeError, AssertionError) as err:
        raise UsageError(f"cannot make the CNN {name!r}: {err}") from err
    if isinstance(model, timm.models.VisionTransformer):
        raise UsageError(f"{name!r} is a ViT, not a CNN; try resnet50")
    return model


def create_head(head: Head, features: int, classes: int) -> nn.Sequential:
    """Return the classifier; module indices equal those of the notebook's ``mlp.layers``."""
    layers: list[nn.Module] = []
    width = features
    for size in head.hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        if head.kind == "mlp":
            layers += [nn.LayerNorm(size), nn.Dropout(head.dropout)]
        width = size
    layers.append(nn.Linear(width, classes))
    return nn.Sequential(*layers)


def describe_branches(
    vit: str, cnn: str, size: tuple[int, int], *, timm_norm: bool = False
) -> tuple[Branch, Branch]:
    """Return the branches of a new spec, with the feature counts of those timm models.

    ``timm_norm`` takes each model's own mean and std from timm, as its pretrained weights need.
    Otherwise both branches use ImageNet's, as the original notebook does.
    """
    branches = []
    for name, model in ((vit, create_vit(vit, size)), (cnn, create_cnn(cnn))):
        branch = Branch(model=name, features=model.num_features)
        if timm_norm:
            config = model.pretrained_cfg
            branch = Branch(
                model=name,
                features=model.num_features,
                mean=tuple(config["mean"]),
                std=tuple(config["std"]),
            )
        branches.append(branch)
    return branches[0], branches[1]
