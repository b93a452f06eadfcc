"""Load checkpoints of the original notebook (BoranT-3000, ViT-ResNet50-Hybrid-Feature-Extractor).

Its model is torchvision's ``vit_b_16`` and ``resnet50`` with an MLP on their features, saved by
``torch.save(model.state_dict(), …)``. The names are converted to timm's; the values stay.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hybrid_rt.errors import CheckpointError
from hybrid_rt.spec import Branch, Head, ModelSpec, Preprocess

VIT, CNN = "feature_extractor.vit.", "feature_extractor.resnet."

#: The notebook's four classes: rows without a BIRADS became its class 0, and the hub dataset's
#: values 0, 1 and 2 followed.
NOTEBOOK_CLASSES = ("not assessed", "0", "1", "2")

_VIT_BLOCK = re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.(.+)")
_VIT_NAMES = {
    "class_token": "cls_token",
    "conv_proj.weight": "patch_embed.proj.weight",
    "conv_proj.bias": "patch_embed.proj.bias",
    "encoder.pos_embedding": "pos_embed",
    "encoder.ln.weight": "norm.weight",
    "encoder.ln.bias": "norm.bias",
}
_BLOCK_NAMES = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj": "attn.proj",
    "mlp.linear_1": "mlp.fc1",
    "mlp.linear_2": "mlp.fc2",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
}


def is_notebook(state: Mapping[str, object]) -> bool:
    """Return whether the names are the notebook's, also with DataParallel's ``module.``."""
    names = [_without_module(name) for name in state]
    return any(n.startswith(VIT) for n in names) and any(n.startswith(CNN) for n in names)


def convert_notebook(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the state dict of HybridClassifier with the same values.

    Raises:
        CheckpointError: A name is none of torchvision's.
    """
    converted: dict[str, Tensor] = {}
    for full, value in state.items():
        name = _without_module(full)
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path} holds {full}, a {type(value).__name__}, not a tensor")
        if name.startswith(VIT):
            converted["vit." + _vit_name(name.removeprefix(VIT), path)] = value
        elif name.startswith(CNN):
            # timm took ResNet's names from torchvision.
            converted["cnn." + name.removeprefix(CNN)] = value
        else:
            converted[_head_name(name, path)] = value
    return converted


def notebook_spec(
    state: Mapping[str, Tensor], path: Path, classes: Sequence[str] | None
) -> ModelSpec:
    """Return the spec: sizes from the tensors, preprocessing from the notebook."""
    converted = convert_notebook(state, path)
    weights = sorted(
        (int(name.split(".")[1]), value)
        for name, value in converted.items()
        if name.startswith("head.") and value.ndim == 2
    )
    if not weights:
        raise CheckpointError(f"{path} has no classifier; expected mlp.layers.* or mlp.*")
    count = int(weights[-1][1].shape[0])
    names = tuple(classes) if classes else default_classes(count)
    if len(names) != count:
        raise CheckpointError(
            f"{path} has {count} classes, but {len(names)} names were passed: {', '.join(names)}"
        )
    size = _image_size(converted, path)
    norms = any(n.startswith("head.") and v.ndim == 1 and n.endswith("weight") for n, v in
                converted.items())  # fmt: skip
    return ModelSpec(
        classes=names,
        preprocess=Preprocess(height=size, width=size),
        vit=Branch(model="vit_base_patch16_224", features=768),
        cnn=Branch(model="resnet50", features=2048),
        head=Head(
            kind="mlp" if norms else "simple",
            hidden=tuple(int(w.shape[0]) for _, w in weights[:-1]),
            dropout=0.2 if norms else 0.0,
        ),
        task="BIRADS",
        provenance={"origin": "notebook checkpoint", "file": path.name},
    )


def default_classes(count: int) -> tuple[str, ...]:
    """Return the notebook's names for four classes, numbers for any other count."""
    if count == len(NOTEBOOK_CLASSES):
        return NOTEBOOK_CLASSES
    return tuple(str(i) for i in range(count))


def _without_module(name: str) -> str:
    return name.removeprefix("module.")


def _vit_name(name: str, path: Path) -> str:
    if name in _VIT_NAMES:
        return _VIT_NAMES[name]
    match = _VIT_BLOCK.fullmatch(name)
    if match:
        for old, new in _BLOCK_NAMES.items():
            if match[2].startswith(old):
                return f"blocks.{match[1]}.{match[2].replace(old, new, 1)}"
    raise CheckpointError(f"{path} has {VIT}{name}; expected the names of torchvision's vit_b_16")


def _head_name(name: str, path: Path) -> str:
    match = re.fullmatch(r"(?:mlp|classifier|fc|head)\.(?:layers\.)?(\d+)\.(weight|bias)", name)
    if not match:
        raise CheckpointError(f"{path} has {name}; expected mlp.layers.N.weight and .bias")
    return f"head.{match[1]}.{match[2]}"


def _image_size(converted: Mapping[str, Tensor], path: Path) -> int:
    tokens: int = converted.get("vit.pos_embed", torch.empty(1, 0, 768)).shape[1] - 1
    side = math.isqrt(max(tokens, 0))
    if side < 1 or side * side != tokens:
        raise CheckpointError(f"{path} has no square position embedding of a ViT-B/16")
    return side * 16
