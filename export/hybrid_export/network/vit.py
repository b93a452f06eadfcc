"""The deployed ViT: the same outputs as timm's, with less to compute and to fuse.

Only the class token of the last block is ever read, so the last block computes its query, its
attention row and its MLP for that token alone. What can be folded is folded into the weights: the
attention's scale into the query projection, LayerScale into the projections before it, the class
token and the position embedding into one table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention, LayerScale, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


class DeployedViT(nn.Module):
    """Class-token features of a timm VisionTransformer whose ``is_standard`` is true.

    Holds copies: the network it was made from stays as it is.
    """

    table: Tensor

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        blocks = cast(Sequence[Block], vit.blocks)
        self.patch_embed = _copy_conv(vit.patch_embed.proj)
        self.patch_norm = vit.patch_embed.norm
        self.prefix = vit.num_prefix_tokens
        self.grid: tuple[int, int] = vit.patch_embed.grid_size
        # [1, prefix + patches, dim]: added to the patches, which are padded in front by zeros
        self.register_buffer("table", _token_table(vit))
        self.norm_pre = vit.norm_pre
        self.blocks = nn.ModuleList([DeployedBlock(block) for block in blocks[:-1]])
        self.blocks.append(ClassTokenBlock(blocks[-1]))
        self.norm = vit.norm
        self.fc_norm = vit.fc_norm

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[batch, dim]`` of normalized images ``[batch, 3, height, width]``."""
        return self.finish(self.trace(images).output)

    def trace(self, images: Tensor) -> ClassTokenTrace:
        """Return the last block's values for the class token."""
        trace: ClassTokenTrace = self.blocks[-1](self.tokens(images))
        return trace

    def tokens(self, images: Tensor) -> Tensor:
        """Return tokens ``[batch, prefix + patches, dim]`` as they enter the last block."""
        x: Tensor = (
            self.patch_embed(images).flatten(2).transpose(1, 2)
        )  # [b, d, gh, gw] -> [b, gh*gw, d]
        x = self.patch_norm(x)
        x = F.pad(x, (0, 0, self.prefix, 0)) + self.table
        x = self.norm_pre(x)
        for block in self.blocks[:-1]:
            x = block(x)
        return x

    def finish(self, token: Tensor) -> Tensor:
        """Return features ``[batch, dim]`` of the class token after the blocks."""
        x: Tensor = self.fc_norm(self.norm(token))
        return x.flatten(1)


class DeployedBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, block: Block, *, one_query: bool = False) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.attn = DeployedAttention(
            cast(Attention, block.attn), _layer_scale(block.ls1), one_query=one_query
        )
        self.norm2 = block.norm2
        self.mlp = DeployedMlp(cast(Mlp, block.mlp), _layer_scale(block.ls2))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens ``[batch, n, dim]`` for tokens ``[batch, n, dim]``."""
        row, values = self.attn.attend(self.norm1(tokens))
        x: Tensor = tokens + self.attn.project(row, values)
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class ClassTokenBlock(DeployedBlock):
    """The last block, for the class token only.

    With ``flat`` the token is ``[batch, dim]``, so that its weights are stored as those of the
    gradients are, which share them. Otherwise it is ``[batch, 1, dim]``: OpenVINO 2026.4 crashes
    if it fuses attention around a flat query; the heatmaps keep it from fusing.
    """

    def __init__(self, block: Block) -> None:
        super().__init__(block, one_query=True)
        self.flat = False

    def forward(self, tokens: Tensor) -> ClassTokenTrace:  # type: ignore[override]
        """Return the class token of ``[batch, n, dim]``, and what running backwards needs."""
        x = self.norm1(tokens)
        row, values = self.attn.attend(x, self._first(x))
        middle = self._first(tokens) + self.attn.project(row, values, flat=self.flat)
        hidden = self.mlp.fc1(self.norm2(middle))
        return ClassTokenTrace(row, values, middle, hidden, middle + self.mlp.finish(hidden))

    def _first(self, tokens: Tensor) -> Tensor:
        return tokens[:, :1].flatten(1) if self.flat else tokens[:, :1]


class ClassTokenTrace(NamedTuple):
    """Values of a ClassTokenBlock; with ``flat`` those of one token have no second dimension."""

    attention: Tensor  # [batch, heads, 1, n], after the softmax
    values: Tensor  # [batch, heads, n, head_dim]
    middle: Tensor  # [batch, 1, dim], between attention and MLP
    hidden: Tensor  # [batch, 1, hidden], before the MLP's activation
    output: Tensor  # [batch, 1, dim]


class DeployedAttention(nn.Module):
    """Softmax attention as plain matrix products, the form that every backend fuses.

    Query, key and value are one product: ONNX Runtime takes a value into int8 for one reader only.
    """

    def __init__(self, attn: Attention, gamma: Tensor | None, *, one_query: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim = attn.num_heads, attn.head_dim
        self.q_norm, self.k_norm, self.norm = attn.q_norm, attn.k_norm, attn.norm
        qkv = _linear(attn.qkv.weight, attn.qkv.bias)
        width = self.heads * self.head_dim
        self.scale = float(attn.scale)
        if isinstance(self.q_norm, nn.Identity):
            scales = torch.ones(3 * width)
            scales[:width] = self.scale
            _scale_rows(qkv, scales)
            self.scale = 1.0
        if one_query:
            self.q, self.kv = _rows(qkv, 0, width), _rows(qkv, width, 3 * width)
        else:
            self.qkv = qkv
        self.proj = _linear(attn.proj.weight, attn.proj.bias)
        if gamma is not None:
            _scale_rows(self.proj, gamma)

    def attend(self, tokens: Tensor, query: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return attention ``[batch, heads, q, n]`` and values ``[batch, heads, n, head_dim]``.

        Of all ``[batch, n, dim]`` tokens, or with ``one_query`` of that one.
        """
        width = self.heads * self.head_dim
        if query is None:
            x = self.qkv(tokens)
            q, x = x[..., :width], x[..., width:]
        else:
            q, x = self.q(query), self.kv(tokens)
            q = q.unsqueeze(1) if q.ndim == 2 else q
        k, v = x[..., :width], x[..., width:]
        q, k, v = self.q_norm(self._split(q)), self.k_norm(self._split(k)), self._split(v)
        if self.scale != 1:
            q = q * self.scale
        return (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).softmax(-1), v.transpose(1, 2)

    def project(self, probabilities: Tensor, values: Tensor, *, flat: bool = False) -> Tensor:
        """Return what the attention adds to the queries' tokens, in the queries' shape."""
        x = (probabilities @ values).transpose(1, 2)  # [b, h, q, hd] -> [b, q, h, hd]
        x = x.flatten(1) if flat else x.flatten(2)
        y: Tensor = self.proj(self.norm(x))
        return y

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, self.head_dim))  # [b, n, h, hd]
        return heads


class DeployedMlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, mlp: Mlp, gamma: Tensor | None) -> None:
        super().__init__()
        self.fc1 = _linear(mlp.fc1.weight, mlp.fc1.bias)
        self.act, self.norm = mlp.act, mlp.norm
        self.fc2 = _linear(mlp.fc2.weight, mlp.fc2.bias)
        if gamma is not None:
            _scale_rows(self.fc2, gamma)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.fc1(x))

    def finish(self, hidden: Tensor) -> Tensor:
        """Return what follows the first linear layer."""
        y: Tensor = self.fc2(self.norm(self.act(hidden)))
        return y


def is_standard(vit: nn.Module) -> bool:
    """Return whether DeployedViT supports every module of this network.

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
    """Return ``[1, prefix + patches, dim]``: position embedding plus class and register tokens."""
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


def _rows(layer: nn.Linear, start: int, end: int) -> nn.Linear:
    """Return a layer with some of another's outputs."""
    return _linear(layer.weight[start:end], None if layer.bias is None else layer.bias[start:end])


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
