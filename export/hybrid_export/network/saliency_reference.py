"""The heatmaps by PyTorch's autograd on the trained network itself: what the graph must equal."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid_train.model.hybrid import HybridClassifier


def heatmaps(model: HybridClassifier, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Return ``heatmap_vit`` and ``heatmap_cnn`` of the predicted class for uint8 NHWC images."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    attention = model.vit.blocks[-1].attn
    seen: list[Tensor] = []

    def keep(_module: object, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])

    fused, attention.fused_attn = attention.fused_attn, False
    handle = attention.attn_drop.register_forward_pre_hook(keep)
    try:
        with torch.enable_grad():
            pixels.requires_grad_()
            vit = model.vit(model.vit_norm(pixels))
            feature_map = model.cnn.forward_features(model.cnn_norm(pixels))
            cnn = model.cnn.forward_head(feature_map, pre_logits=True)
            logits = model.head(torch.cat((vit, cnn), dim=1))
            (weights,) = seen
            largest = logits.amax(1)
            (of_map,) = torch.autograd.grad(largest.sum(), feature_map, retain_graph=True)
            predicted = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).bool()
            others = logits.masked_fill(predicted, -torch.inf).logsumexp(1)
            (of_weights,) = torch.autograd.grad((largest - others).sum(), weights)
    finally:
        handle.remove()
        attention.fused_attn = fused
    row = (of_weights[:, :, 0] * weights[:, :, 0]).relu().sum(1)  # [batch, n]
    grid = model.vit.patch_embed.grid_size
    heat_vit = row[:, model.vit.num_prefix_tokens :].unflatten(1, grid)
    channel_weights = of_map.mean((2, 3), keepdim=True)
    heat_cnn = (channel_weights * feature_map).sum(1).relu()
    return {"heatmap_vit": heat_vit.detach().numpy(), "heatmap_cnn": heat_cnn.detach().numpy()}
