"""The deployed ViT: the same answer as timm's, with less to compute and to fuse.

Only the class token of the last block is ever read, so the last block computes its query, its
attention row and its MLP for that token alone. What can be folded is folded into the weights: the
attention's scale into the query projection, LayerScale into the projections before it, the class
token and the position embedding into one table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Attention, LayerScale
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


class DeployedViT(nn.Module):
    """Class-token features of a timm VisionTransformer whose ``is_standard`` is true.

    Holds copies: the network it was made from stays as it is.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.patch_embed = _copy_conv(vit.patch_embed.proj)
        self.patch_norm = vit.patch_embed.norm
        self.prefix = vit.num_prefix_tokens
        self.grid: tuple[int, int] = vit.patch_embed.grid_size
        # [1, prefix + patches, dim]: added to the patches, which are padded in front by zeros
        self.register_buffer("table", _token_table(vit))
        self.norm_pre = vit.norm_pre
        last = len(vit.blocks) - 1
        self.blocks = nn.ModuleList(
            DeployedBlock(block, queries=1 if i == last else None)
            for i, block in enumerate(vit.blocks)
        )
        self.norm = vit.norm
        self.fc_norm = vit.fc_norm

    def forward(self, images: Tensor) -> Tensor:
        """Features ``[batch, dim]`` of normalized float images ``[batch, 3, height, width]``."""
        return self.finish(self.last_block(self.tokens(images)))

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens ``[batch, prefix + patches, dim]`` as they enter the last block."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # [b, d, gh, gw] -> [b, gh*gw, d]
        x = self.patch_norm(x)
        x = F.pad(x, (0, 0, self.prefix, 0)) + self.table
        x = self.norm_pre(x)
        for block in self.blocks[:-1]:
            x = block(x)
        return x

    @property
    def last_block(self) -> DeployedBlock:
        block = self.blocks[-1]
        assert isinstance(block, DeployedBlock)
        return block

    def finish(self, token: Tensor) -> Tensor:
        """Features ``[batch, dim]`` of the class token ``[batch, 1, dim]`` after the blocks."""
        x: Tensor = self.fc_norm(self.norm(token))
        return x.flatten(1)


class DeployedBlock(nn.Module):
    """A pre-norm transformer block; ``queries`` limits it to the first so many tokens."""

    def __init__(self, block: Block, queries: int | None) -> None:
        super().__init__()
        self.queries = queries
        self.norm1 = block.norm1
        self.attn = DeployedAttention(block.attn, _layer_scale(block.ls1))
        self.norm2 = block.norm2
        self.mlp = DeployedMlp(block.mlp, _layer_scale(block.ls2))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[batch, n, dim]`` -> ``[batch, queries or n, dim]``."""
        x = self.norm1(tokens)
        probabilities, values = self.attn.attend(x, self._first(x))
        x = self._first(tokens) + self.attn.project(probabilities, values)
        return x + self.mlp(self.norm2(x))

    def _first(self, tokens: Tensor) -> Tensor:
        return tokens if self.queries is None else tokens[:, : self.queries]


class DeployedAttention(nn.Module):
    """Softmax attention as plain matrix products, the form every backend knows how to fuse."""

    def __init__(self, attn: Attention, gamma: Tensor | None) -> None:
        super().__init__()
        self.heads, self.head_dim = attn.num_heads, attn.head_dim
        weights = attn.qkv.weight.detach().chunk(3)
        biases = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.detach().chunk(3)
        self.q, self.k, self.v = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.q_norm, self.k_norm, self.norm = attn.q_norm, attn.k_norm, attn.norm
        self.scale = float(attn.scale)
        if isinstance(self.q_norm, nn.Identity):
            _scale_rows(self.q, self.scale)
            self.scale = 1.0
        self.proj = _linear(attn.proj.weight, attn.proj.bias)
        if gamma is not None:
            _scale_rows(self.proj, gamma)

    def attend(self, tokens: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Attention ``[batch, heads, q, n]`` and values ``[batch, heads, n, head_dim]``."""
        q = self.q_norm(self._split(self.q(queries)))
        k = self.k_norm(self._split(self.k(tokens)))
        v = self._split(self.v(tokens))
        if self.scale != 1:
            q = q * self.scale
        return (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).softmax(-1), v.transpose(1, 2)

    def project(self, probabilities: Tensor, values: Tensor) -> Tensor:
        """What the attention adds to the queries' tokens, ``[batch, q, dim]``."""
        x = (probabilities @ values).transpose(1, 2).flatten(2)  # [b, h, q, hd] -> [b, q, h*hd]
        x = self.proj(self.norm(x))
        return x

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim))  # [b, n, h, hd]


class DeployedMlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, mlp: nn.Module, gamma: Tensor | None) -> None:
        super().__init__()
        self.fc1 = _linear(mlp.fc1.weight, mlp.fc1.bias)
        self.act, self.norm = mlp.act, mlp.norm
        self.fc2 = _linear(mlp.fc2.weight, mlp.fc2.bias)
        if gamma is not None:
            _scale_rows(self.fc2, gamma)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.norm(self.act(self.fc1(x))))
        return y


def is_standard(vit: nn.Module) -> bool:
    """Whether DeployedViT knows every part of this network.

    Others (post-norm blocks, gated or differential attention, SwiGLU) are exported as they are.
    """
    if type(vit) is not VisionTransformer or vit.global_pool != "token":
        return False
    if vit.attn_pool is not None or vit.cls_token is None or len(vit.blocks) == 0:
        return False
    if not isinstance(vit.patch_embed.proj, nn.Conv2d) or vit.patch_embed.dynamic_img_pad:
        return False
    if not (vit.patch_embed.flatten or vit.dynamic_img_size):
        return False
    return all(_is_standard_block(block) for block in vit.blocks)


def _is_standard_block(block: nn.Module) -> bool:
    return (
        type(block) is Block
        and type(block.attn) is Attention
        and getattr(block.attn, "gate", None) is None
        and hasattr(block.attn, "norm")
        and type(block.mlp).__name__ == "Mlp"
        and all(isinstance(ls, (nn.Identity, LayerScale)) for ls in (block.ls1, block.ls2))
    )


def _token_table(vit: VisionTransformer) -> Tensor:
    """``[1, prefix + patches, dim]``: position embedding plus class and register tokens."""
    grid = vit.patch_embed.grid_size
    prefix = [t.detach() for t in (vit.cls_token, vit.reg_token) if t is not None]
    tokens = torch.cat(prefix, dim=1)
    patches = torch.zeros(1, grid[0] * grid[1], tokens.shape[-1])
    if vit.pos_embed is None:
        return torch.cat((tokens, patches), dim=1)
    if vit.no_embed_class:
        return torch.cat((tokens, vit.pos_embed.detach()), dim=1)
    return torch.cat((tokens, patches), dim=1) + vit.pos_embed.detach()


def _layer_scale(layer: nn.Module) -> Tensor | None:
    return layer.gamma.detach() if isinstance(layer, LayerScale) else None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


def _copy_conv(conv: nn.Conv2d) -> nn.Conv2d:
    copy = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    copy.load_state_dict(conv.state_dict())
    return copy


def _scale_rows(layer: nn.Linear, factor: float | Tensor) -> None:
    """Multiply the layer's outputs by a number, or each by its own."""
    with torch.no_grad():
        rows = factor[:, None] if isinstance(factor, Tensor) else factor
        layer.weight.mul_(rows)
        if layer.bias is not None:
            layer.bias.mul_(factor)
