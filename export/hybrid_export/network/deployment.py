"""The deployment graph: everything between a uint8 image and a prediction, as one torch module.

    graph = DeploymentGraph(model, spec, explain=False)
    probabilities, logits, features = graph(images)  # uint8 [batch, height, width, 3]

It is what is exported, so that no client has to repeat any of it: cast, layout, scaling, each
branch's normalization, the backbones, the head, the fitted temperature.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from hybrid_export.network.fold_batchnorm import fold_batch_norms
from hybrid_export.network.saliency import HEATMAP_NAMES, CnnHeatmap, ExplainedHead, VitHeatmap
from hybrid_export.network.vit import DeployedViT, is_standard
from hybrid_rt.errors import ExportError
from hybrid_rt.spec import Branch, ModelSpec, Output
from hybrid_train.model.hybrid import HybridClassifier

INPUT_NAME = "images"

#: Largest difference, in units of the output's own range, that folding may cause.
_FOLD_TOLERANCE = 1e-4


class DeploymentGraph(nn.Module):
    """uint8 images ``[batch, height, width, 3]`` to probabilities, logits and features, float32.

    With ``explain`` also to the heatmaps of ``network.saliency``. The model is not changed.
    Raises ExportError if folding changes what a branch returns, or if a backbone is of a
    kind that has no heatmaps.
    """

    def __init__(self, model: HybridClassifier, spec: ModelSpec, *, explain: bool = False) -> None:
        super().__init__()
        model = copy.deepcopy(model).eval().float().cpu().requires_grad_(False)
        self.temperature = spec.temperature
        self.vit_norm = PixelNorm(spec.vit)
        shared = (spec.vit.mean, spec.vit.std) == (spec.cnn.mean, spec.cnn.std)
        self.cnn_norm = None if shared else PixelNorm(spec.cnn)
        size = (spec.preprocess.height, spec.preprocess.width)
        example = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
        self.vit = deployed_vit(model.vit, example)
        self.cnn = DeployedCnn(model.cnn, example)
        self.head: nn.Module = model.head
        self.explain = explain
        if explain:
            self._add_heatmaps(example)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs that ``outputs`` lists, in its order."""
        pixels = images.to(torch.float32)  # cast first: TensorRT cannot transpose uint8
        pixels = pixels.permute(0, 3, 1, 2)  # NHWC -> NCHW
        vit_pixels = self.vit_norm(pixels)
        cnn_pixels = vit_pixels if self.cnn_norm is None else self.cnn_norm(pixels)
        if self.explain:
            return self._forward_explained(vit_pixels, cnn_pixels)
        features = torch.cat((self.vit(vit_pixels), self.cnn(cnn_pixels)), dim=1)
        logits = self.head(features)
        return self._probabilities(logits), logits, features

    def _forward_explained(self, vit_pixels: Tensor, cnn_pixels: Tensor) -> tuple[Tensor, ...]:
        trace = self.vit.trace(vit_pixels)  # type: ignore[operator]
        feature_map = self.cnn.feature_map(cnn_pixels)
        vit = self.vit.finish(trace.output)  # type: ignore[operator]
        features = torch.cat((vit, self.cnn.pool(feature_map)), dim=1)
        logits, gradients = self.head(features)
        of_vit = gradients.log_odds[:, : vit.shape[1]]
        of_cnn = gradients.logit[:, vit.shape[1] :]
        return (
            self._probabilities(logits),
            logits,
            features,
            self.explain_vit(trace, of_vit),
            self.explain_cnn(feature_map, of_cnn),
        )

    def _probabilities(self, logits: Tensor) -> Tensor:
        return (logits / self.temperature).softmax(-1)

    def _add_heatmaps(self, example: Tensor) -> None:
        if not isinstance(self.vit, DeployedViT):
            raise ExportError(
                "--explain needs a plain ViT with a class token; try vit_base_patch16_224"
            )
        if not self.cnn.mean_pooled:
            raise ExportError(
                "--explain needs a CNN whose features are the mean of its last map; try resnet50"
            )
        self.head = ExplainedHead(cast(nn.Sequential, self.head))
        self.explain_vit = VitHeatmap(self.vit)
        self.explain_cnn = CnnHeatmap()
        with torch.no_grad():
            self.cnn_grid = tuple(self.cnn.feature_map(example).shape[2:])

    def outputs(self, spec: ModelSpec) -> tuple[Output, ...]:
        """Return the graph's outputs, for the spec."""
        made = [
            Output(name="probabilities", shape=("batch", len(spec.classes))),
            Output(name="logits", shape=("batch", len(spec.classes))),
            Output(name="features", shape=("batch", spec.num_features)),
        ]
        if self.explain:
            assert isinstance(self.vit, DeployedViT)
            grids = (self.vit.grid, self.cnn_grid)
            for name, grid in zip(HEATMAP_NAMES, grids, strict=True):
                made.append(Output(name=name, shape=("batch", *grid)))
        return tuple(made)


class PixelNorm(nn.Module):
    """(pixel / 255 - mean) / std per channel, as one multiplication and one addition."""

    scale: Tensor
    shift: Tensor

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (branch.mean, branch.std))
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).float().view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels * self.scale + self.shift


class DeployedCnn(nn.Module):
    """A timm CNN with its batch normalizations folded, split at its last feature map."""

    def __init__(self, cnn: nn.Module, example: Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            before = cnn(example)
            fold_batch_norms(cnn, example)
            feature_map = cnn.forward_features(example)  # type: ignore[operator]
            self.network = cnn
            #: Whether the features are the plain mean of the map, so that Grad-CAM applies.
            self.mean_pooled = _differs(feature_map.mean((2, 3)), before) <= _FOLD_TOLERANCE
            _check_same("cnn", self.forward(example), before)

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[batch, channels]``."""
        return self.pool(self.feature_map(images))

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the last map, ``[batch, channels, height, width]``."""
        return cast(Tensor, self.network.forward_features(images))  # type: ignore[operator]

    def pool(self, feature_map: Tensor) -> Tensor:
        """Return features ``[batch, channels]`` of that map."""
        if self.mean_pooled:
            return feature_map.mean((2, 3))
        return cast(Tensor, self.network.forward_head(feature_map, pre_logits=True))  # type: ignore[operator]


class PlainViT(nn.Module):
    """Any other timm ViT, as it is."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.network = vit

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.network.forward_features(images)  # type: ignore[operator]
        return cast(Tensor, self.network.forward_head(tokens, pre_logits=True))  # type: ignore[operator]


def deployed_vit(vit: nn.Module, example: Tensor) -> nn.Module:
    """Return the ViT computing only what its class token needs; as it is if its kind is unknown."""
    plain = PlainViT(vit)
    if not is_standard(vit):
        return plain
    deployed = DeployedViT(vit)  # type: ignore[arg-type]
    with torch.no_grad():
        _check_same("vit", deployed(example), plain(example))
    return deployed


def _differs(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest value; infinite if the shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-6))


def _check_same(branch: str, got: Tensor, expected: Tensor) -> None:
    gap = _differs(got, expected)
    if not gap <= _FOLD_TOLERANCE:
        raise ExportError(
            f"folding changed the {branch} branch by {gap:.1e} of its range; expected at most "
            f"{_FOLD_TOLERANCE:.0e}: check the weights for NaN or try another {branch}"
        )
