"""Batch normalization folded into the convolution before it, for any CNN.

A convolution followed by a normalization with fixed statistics is one convolution (Jacob et al.
2018, section 3.2). Which normalization follows which convolution is observed on a forward pass,
so that it works for every timm CNN; the sums are made in double precision.
"""

from __future__ import annotations

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_batch_norms(network: nn.Module, example: Tensor) -> int:
    """Fold in place; returns how many were folded. ``example`` is an input of the network.

    A normalization that does not come straight after a convolution of its own stays.
    """
    pairs = _pairs(network, example)
    names = {module: name for name, module in network.named_modules()}
    for conv, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        double = [
            None if t is None else t.detach().double()
            for t in (
                conv.weight,
                conv.bias,
                norm.running_mean,
                norm.running_var,
                norm.weight,
                norm.bias,
            )
        ]
        weight, bias, mean, var, gamma, beta = double
        weight, bias = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, gamma, beta)  # type: ignore[arg-type]
        conv.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
        conv.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
        network.set_submodule(names[norm], _remainder(norm))
    return len(pairs)


def _remainder(norm: nn.Module) -> nn.Module:
    """Return what is left of a normalization that was folded: timm puts the activation inside."""
    if isinstance(norm, BatchNormAct2d):
        return nn.Sequential(norm.drop, norm.act)
    return nn.Identity()


def _pairs(network: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return convolutions whose output goes to one normalization, each of the two called once."""
    made_by: dict[int, nn.Conv2d] = {}
    outputs: list[Tensor] = []  # kept alive, so that ids stay unique
    calls: dict[nn.Module, int] = {}
    follows: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_conv(module: nn.Module, _args: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made_by[id(output)] = module
        outputs.append(output)
        calls[module] = calls.get(module, 0) + 1

    def before_norm(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        calls[module] = calls.get(module, 0) + 1
        conv = made_by.get(id(args[0]))
        if conv is not None:
            follows.append((conv, module))

    handles = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    users = [conv for conv, _ in follows]
    return [(c, n) for c, n in follows if calls[c] == calls[n] == 1 and users.count(c) == 1]
