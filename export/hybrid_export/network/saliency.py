"""Heatmaps in the same pass as the prediction: gradients written out in ordinary operators.

Autograd does not export, so the head and the class token's way through the last block are run
backwards by hand. Both maps are for the predicted class and are exact:

- ``heatmap_cnn``: Grad-CAM (Selvaraju et al. 2017) of the last feature map, of the class's logit.
- ``heatmap_vit``: the class token's attention of the last block weighted by its gradient, positive
  values, sum over heads (Chefer et al. 2021, "Generic attention-model explainability", rule 5), of
  the class's log-odds. On phantoms that found twice as many lesions as the logit: most of the
  logit's gradient is shared by all classes, and a softmax ignores what all logits share.

A map adds up to how far its branch moves that number, to first order: a branch with little heat has
little influence.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from hybrid_export.network.vit import ClassTokenBlock, ClassTokenTrace, DeployedViT
from hybrid_rt.errors import ExportError

HEATMAP_NAMES = ("heatmap_vit", "heatmap_cnn")

#: Gradients are carried at this multiple, so that small ones stay above FP16's subnormals.
GRADIENT_SCALE = 64.0


#: Taken from a logit, it leaves its class no probability, in FP16 too.
_NEVER = 1e4


class HeadGradients(NamedTuple):
    """GRADIENT_SCALE times a gradient of the features ``[batch, features]``."""

    logit: Tensor  # of the predicted class's logit
    log_odds: Tensor  # of log(p / (1 - p)), p that class's probability before the temperature


class LinearGradient(nn.Module):
    """The gradient of a linear layer's input: the product with its weight, which is shared.

    A square weight is stored once more, transposed: OpenVINO (2026.4) repacks a weight once and
    mistakes the two directions for each other if their shapes are equal.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.square = layer.in_features == layer.out_features
        if self.square:
            self.register_buffer("transposed", layer.weight.detach().t().contiguous())

    def forward(self, gradient: Tensor) -> Tensor:
        """Return ``[batch, in]`` for ``[batch, out]``."""
        if self.square:
            return nn.functional.linear(gradient, cast(Tensor, self.transposed))
        return gradient @ self.layer.weight


class ExplainedHead(nn.Module):
    """A head of Linear, ReLU and LayerNorm that also runs backwards."""

    def __init__(self, head: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.ModuleList(m for m in head if not isinstance(m, nn.Dropout))
        for layer in self.layers:
            if not isinstance(layer, (nn.Linear, nn.ReLU, nn.LayerNorm)):
                raise ExportError(
                    f"--explain cannot run {type(layer).__name__} of the head backwards; expected "
                    "Linear, ReLU and LayerNorm"
                )
        self.gradients = nn.ModuleList(
            LinearGradient(m) if isinstance(m, nn.Linear) else nn.Identity() for m in self.layers
        )

    def forward(self, features: Tensor) -> tuple[Tensor, HeadGradients]:
        """Return logits of features ``[batch, features]``, and gradients of the largest logit."""
        values = [features]
        for layer in self.layers:
            values.append(layer(values[-1]))
        logits = values.pop()
        largest = logits.amax(dim=1, keepdim=True)
        chosen = (logits == largest).to(logits.dtype)  # [batch, classes]
        others = (logits - _NEVER * chosen).softmax(1)  # as if the predicted class were not there
        gradients = [self._backwards(chosen, values), self._backwards(chosen - others, values)]
        return logits, HeadGradients(*gradients)

    def _backwards(self, gradient: Tensor, values: list[Tensor]) -> Tensor:
        """Return the features' gradient from that of the logits, times GRADIENT_SCALE."""
        gradient = gradient * GRADIENT_SCALE
        steps = zip(self.layers, self.gradients, values, strict=True)
        for layer, backwards, x in reversed(list(steps)):
            if isinstance(layer, nn.Linear):
                gradient = backwards(gradient)
            elif isinstance(layer, nn.ReLU):
                gradient = gradient * (x > 0).to(gradient.dtype)
            else:
                gradient = layer_norm_gradient(cast(nn.LayerNorm, layer), x, gradient)
        return gradient


class CnnHeatmap(nn.Module):
    """Grad-CAM of a feature map whose mean is the features."""

    def forward(self, feature_map: Tensor, gradient: Tensor) -> Tensor:
        """Return ``[batch, height, width]`` for a map and the gradient of the features."""
        batch_map = feature_map.flatten(2)  # [batch, channels, height * width]
        weights = gradient / (batch_map.shape[2] * GRADIENT_SCALE)
        cam = weights.unsqueeze(1) @ batch_map  # [batch, 1, height * width]
        heat: Tensor = cam.relu().unflatten(2, feature_map.shape[2:]).flatten(0, 1)
        return heat


class VitHeatmap(nn.Module):
    """The class token's attention weighted by its gradient, on the grid of patches."""

    def __init__(self, vit: DeployedViT) -> None:
        super().__init__()
        block = vit.blocks[-1]
        assert isinstance(block, ClassTokenBlock)
        block.flat = True
        self.block, self.norm, self.fc_norm = block, vit.norm, vit.fc_norm
        self.prefix, self.grid = vit.prefix, vit.grid
        self.fc1, self.fc2 = LinearGradient(block.mlp.fc1), LinearGradient(block.mlp.fc2)
        self.proj = LinearGradient(block.attn.proj)
        plain = (block.attn.norm, block.mlp.norm)
        if not isinstance(block.mlp.act, nn.GELU) or block.mlp.act.approximate != "none":
            raise ExportError("--explain needs a ViT with exact GELU; try vit_base_patch16_224")
        if not all(isinstance(module, nn.Identity) for module in plain):
            raise ExportError("--explain needs a ViT without inner norms; try vit_base_patch16_224")

    def forward(self, trace: ClassTokenTrace, gradient: Tensor) -> Tensor:
        """Return ``[batch, grid height, grid width]``; gradient is that of the features."""
        token = trace.output
        if not isinstance(self.fc_norm, nn.Identity):
            gradient = layer_norm_gradient(self.fc_norm, self.norm(token), gradient)
        if not isinstance(self.norm, nn.Identity):
            gradient = layer_norm_gradient(self.norm, token, gradient)
        gradient = gradient + self._mlp_gradient(trace, gradient)
        attn = self.block.attn
        gradient = self.proj(gradient)  # [batch, heads * head_dim]
        gradient = gradient.unflatten(1, (attn.heads, 1, attn.head_dim))
        gradient = gradient @ trace.values.transpose(2, 3)  # d logit / d attention: [b, h, 1, n]
        row = (gradient * trace.attention).relu().sum(dim=1) / GRADIENT_SCALE  # [b, 1, n]
        heat: Tensor = row[:, :, self.prefix :].unflatten(2, self.grid).flatten(0, 1)
        return heat

    def _mlp_gradient(self, trace: ClassTokenTrace, gradient: Tensor) -> Tensor:
        gradient = self.fc1(self.fc2(gradient) * gelu_gradient(trace.hidden))
        return layer_norm_gradient(cast(nn.LayerNorm, self.block.norm2), trace.middle, gradient)


def layer_norm_gradient(norm: nn.LayerNorm, x: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of a LayerNorm's input ``x`` from its output's, over the last axis."""
    centered = x - x.mean(-1, keepdim=True)
    variance = (centered * centered).mean(-1, keepdim=True)
    inverse = 1 / (variance + norm.eps).sqrt()
    unit = centered * inverse
    if norm.weight is not None:
        gradient = gradient * norm.weight
    along = (gradient * unit).mean(-1, keepdim=True)
    return inverse * (gradient - gradient.mean(-1, keepdim=True) - unit * along)


def gelu_gradient(x: Tensor) -> Tensor:
    """Return d gelu(x) / dx: the normal distribution's Phi(x) + x phi(x)."""
    cumulative = 0.5 * (1 + torch.erf(x * (1 / math.sqrt(2))))
    density = torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return cumulative + x * density
