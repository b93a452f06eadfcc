"""The average of the weights: its warm-up, and buffers."""

import torch
from torch import nn

from hybrid_train.loop.step import weight_average


def test_weight_average_follows_weights_and_buffers():
    """After step k the decay is (1 + k) / (10 + k), but no more than the one asked for."""
    model = nn.BatchNorm1d(3)
    average = weight_average(model, 0.9)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for step in range(120):
        with torch.no_grad():
            model.weight.normal_()
            model.running_var.uniform_()
            model.num_batches_tracked += 1
        average.update(model, step + 2)
        decay = min(0.9, (1 + step) / (10 + step))
        for name in ("weight", "running_var"):
            now = model.state_dict()[name].double()
            expected[name] = expected[name] * decay + now * (1 - decay)
    for name in ("weight", "running_var"):
        gap = (average.module.state_dict()[name] - expected[name]).abs().max().item()
        assert gap < 1e-6, (name, gap)
    assert average.module.num_batches_tracked == 120
    assert not average.module.training
