"""Optimizer, schedule, precision: how the weights move."""

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
    """What to compute in. "auto" on a GPU is bf16 if it has it, else fp16; on a CPU it is bf16 only
    if that ran there and was faster than fp32 (``hybrid_rt.cpu``), else fp32.

    Raises UsageError for a precision that this device cannot run.
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
    """Whether PyTorch ran bf16 on this CPU faster than fp32 when the CPU was probed."""
    if not usable("torch", "bf16"):
        return False
    profile = cpu_profile("torch")
    bf16, fp32 = (profile.milliseconds("torch", p) for p in ("bf16", "fp32"))
    if bf16 is None or fp32 is None:  # not probed: by the CPU's own word
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in checks)
    return bf16 < fp32


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(
        device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16
    )


def exact() -> AbstractContextManager[Any]:
    """Within it, fp32 convolutions are fp32 on a GPU too, not TF32, which cuDNN takes by itself."""
    flags: AbstractContextManager[Any] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return flags


def make_optimizer(model: HybridClassifier, config: RunConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019): no decay on biases and norms, optional layer-wise decay.

    Every group carries ``lr_scale``, by which the schedule's rate is multiplied.
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
    """timm's parameter groups; the position embedding and the class token have no decay."""
    decay, excluded = config.weight_decay, ("pos_embed", "cls_token")
    if config.layer_decay < 1:
        return param_groups_layer_decay(backbone, decay, excluded, layer_decay=config.layer_decay)
    return param_groups_weight_decay(backbone, decay, no_weight_decay_list=excluded)


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up over ``warmup`` steps, then half a cosine down to 1% of ``peak``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def freeze_batchnorm(model: nn.Module) -> None:
    """Keep the running statistics as they are: for small batches and equal results across GPUs."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def restore_prior(head: nn.Linear, counts: Any, config: RunConfig) -> None:
    """Restore the classes' frequencies that balancing removed.

    Class weights and balanced sampling train for equal classes, and the probabilities say so. The
    bias is moved by log(frequency / trained frequency) (Saerens, Latinne & Decaestecker 2002), so
    that they speak of the data as it is. Nothing happens where nothing was balanced.
    """
    frequency = torch.as_tensor(counts, dtype=torch.float64).clamp_min(1)
    frequency = frequency / frequency.sum()
    trained = frequency.clone()
    if config.sampler == "balanced":
        trained = torch.ones_like(frequency)
    if config.class_weights == "balanced":
        trained = trained / frequency
    shift = torch.log(frequency) - torch.log(trained / trained.sum())
    with torch.no_grad():
        head.bias.add_((shift - shift.mean()).to(head.bias))
