"""Ranges of activations on real images, and the scale that loses least for each.

A symmetric scale either clips large values or rounds small ones coarsely. The scale chosen here
has the smallest expected squared error over a histogram of what was seen (Banner et al. 2019 and
Wu et al. 2020, "Integer quantization for deep learning inference", compare such choices).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid_export.onnx_graph.evaluator import RoundingEvaluator

_BINS = 2048
_CANDIDATES = 100  # clipping points tried, evenly from a hundredth of the largest value to it
_BATCH = 8


@dataclass(frozen=True)
class Ranges:
    """Histograms of the magnitudes of each value.

    ``histograms[name]`` has ``_BINS`` counts from 0 to ``largest[name]``.
    """

    histograms: dict[str, NDArray[np.float64]]
    largest: dict[str, float]

    def scale(self, name: str) -> float:
        """Return the step of a symmetric int8 value: the largest kept magnitude over 127."""
        return best_clip(self.histograms[name], self.largest[name]) / 127


def measure_ranges(model: Any, names: Collection[str], images: NDArray[np.uint8]) -> Ranges:
    """Run the fp32 model twice over the images: for the largest magnitudes, then histograms."""
    names = set(names)
    evaluator = RoundingEvaluator(model)
    largest = dict.fromkeys(names, 0.0)
    histograms = {name: np.zeros(_BINS) for name in names}

    def find_largest(name: str, value: Tensor) -> None:
        if name in names:
            largest[name] = max(largest[name], float(value.abs().max()))

    def count(name: str, value: Tensor) -> None:
        if name in names and largest[name] > 0:
            histograms[name] += torch.histc(value.abs(), _BINS, 0, largest[name]).numpy()

    for observe in (find_largest, count):
        for start in range(0, len(images), _BATCH):
            evaluator.run(images[start : start + _BATCH], observe)
    return Ranges(histograms, largest)


def best_clip(histogram: NDArray[np.float64], largest: float, levels: int = 127) -> float:
    """Return the magnitude to clip at, with the least expected squared error at ``levels``."""
    if largest <= 0 or histogram.sum() == 0:
        return 1.0
    centers = (np.arange(_BINS) + 0.5) * largest / _BINS
    clips = np.linspace(0.01, 1, _CANDIDATES) * largest
    steps = (clips / levels)[:, None]
    kept = np.minimum(np.round(centers / steps), levels) * steps  # [candidates, bins]
    # A bin is as wide as a step at times; inside it the rounding error is uniform.
    inside = np.where(centers <= clips[:, None], np.minimum(steps, largest / _BINS) ** 2 / 12, 0)
    errors = ((kept - centers) ** 2 + inside) @ histogram
    return float(clips[errors.argmin()])
