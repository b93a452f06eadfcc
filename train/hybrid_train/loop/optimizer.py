"""Optimizer, learning rate schedule and precision."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from hybrid_rt.cpu import cpu_profile, usable, why_unusable
from hybrid_rt.errors import UsageError
from hybrid_train.config import RunConfig
from hybrid_train.model.hybrid import HybridClassifier


def choose_precision(asked: str, device: torch.device) -> str:
    """Return the precision to compute in.

    "auto" on a GPU is bf16 if the GPU has it, else fp16. On a CPU it is bf16 only if that was
    faster than fp32 when the CPU was probed (``hybrid_rt.cpu``), else fp32.

    Raises:
        UsageError: This device cannot run the precision.
    """
    if device.type == "cuda":
        able = torch.cuda.get_device_capability(device) >= (8, 0)
        return ("bf16" if able else "fp16") if asked == "auto" else asked
    if asked == "fp16":
        raise UsageError("--precision fp16 needs a GPU; use bf16, fp32 or auto on a CPU")
    if asked == "auto":
        return "bf16" if bf16_is_faster() else "fp32"
    reason = why_unusable("torch", asked)
    if reason is not None:
        raise UsageError(f"--precision {asked}: {reason}; or use --precision fp32 or auto")
    return asked


def bf16_is_faster() -> bool:
    """Return whether bf16 was faster than fp32 in PyTorch when this CPU was probed."""
    if not usable("torch", "bf16"):
        return False
    profile = cpu_profile("torch")
    bf16, fp32 = (profile.milliseconds("torch", p) for p in ("bf16", "fp32"))
    if bf16 is None or fp32 is None:  # not probed: by the features that the CPU reports
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in checks)
    return bf16 < fp32


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that computes in the precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(
        device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16
    )


def exact() -> AbstractContextManager[Any]:
    """Return a context in which cuDNN computes fp32 convolutions in fp32, not in TF32."""
    flags: AbstractContextManager[Any] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return flags


def make_optimizer(model: HybridClassifier, config: RunConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019) without decay on biases, norms and embeddings.

    Every group has an ``lr_scale``, by which the schedule's rate is multiplied.
    """
    groups = [
        {**group, "lr_scale": group.get("lr_scale", 1.0) * config.backbone_lr_scale}
        for backbone in (model.vit, model.cnn)
        for group in backbone_groups(backbone, config)
    ]
    for group in param_groups_weight_decay(model.head, config.weight_decay):
        groups.append({**group, "lr_scale": 1.0})
    fused = next(model.parameters()).device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def backbone_groups(backbone: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    """Return timm's parameter groups; position embedding and class token have no decay."""
    decay, excluded = config.weight_decay, ("pos_embed", "cls_token")
    groups: list[dict[str, Any]]
    if config.layer_decay < 1:
        groups = param_groups_layer_decay(
            backbone, decay, no_weight_decay_list=excluded, layer_decay=config.layer_decay
        )
    else:
        groups = param_groups_weight_decay(backbone, decay, no_weight_decay_list=excluded)
    return groups


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the rate of a step: linear warm-up, then half a cosine down to 1% of ``peak``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's rate to ``rate`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def freeze_batchnorm(model: nn.Module) -> None:
    """Keep the running statistics: for small batches, and equal results across GPUs."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def restore_prior(model: HybridClassifier, counts: Any, config: RunConfig) -> None:
    """Restore the class frequencies that balancing removed; do nothing if nothing was balanced.

    Class weights and balanced sampling train for equally frequent classes. The last layer's bias
    is moved by log(frequency / trained frequency) (Saerens, Latinne & Decaestecker 2002), so that
    the probabilities are those of the data's own frequencies.

    Args:
        counts: Training images of each class.
    """
    frequency = torch.as_tensor(counts, dtype=torch.float64).clamp_min(1)
    frequency = frequency / frequency.sum()
    trained = frequency.clone()
    if config.sampler == "balanced":
        trained = torch.ones_like(frequency)
    if config.class_weights == "balanced":
        trained = trained / frequency
    shift = torch.log(frequency) - torch.log(trained / trained.sum())
    output = model.head[-1]
    assert isinstance(output, nn.Linear)
    with torch.no_grad():
        output.bias.add_((shift - shift.mean()).to(output.bias))
