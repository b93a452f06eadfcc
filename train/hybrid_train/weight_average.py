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

    def update(self, source: nn.Module, step: int) -> None:
        """Take in the weights after ``step``, counted from 0."""
        # Early on, a shorter memory: the first weights are noise.
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, now in zip(
                self.model.state_dict().values(), source.state_dict().values(), strict=True
            ):
                if kept.is_floating_point():
                    kept.lerp_(now, 1 - decay)
                else:
                    kept.copy_(now)
