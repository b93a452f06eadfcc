"""An exponential moving average of a network's weights (Polyak & Juditsky 1992)."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """``model`` follows ``source`` with a decay a step; buffers follow as weights do."""

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(source).eval()
        self.decay = decay
        # The tensors themselves: training and loading a state change them in place.
        ours, theirs = self.model.state_dict().values(), source.state_dict().values()
        pairs = list(zip(ours, theirs, strict=True))
        self._floats = [(kept, now) for kept, now in pairs if kept.is_floating_point()]
        self._counts = [(kept, now) for kept, now in pairs if not kept.is_floating_point()]

    def update(self, step: int) -> None:
        """Take in the source's weights after ``step``, counted from 0."""
        # Early on, a shorter memory: the first weights are noise.
        decay = min(self.decay, (1 + step) / (10 + step))
        kept, now = ([pair[k] for pair in self._floats] for k in (0, 1))
        with torch.no_grad():
            torch._foreach_lerp_(kept, now, 1 - decay)  # a few kernels, not one for each tensor
            for kept_count, count in self._counts:
                kept_count.copy_(count)
