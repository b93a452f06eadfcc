"""A backend without a library, for tests and for measuring everything but the model.

Its outputs are a fixed linear function of the mean of each image's quarters, computed row by
row: an image has the same outputs, bit for bit, alone, in a batch and on every machine.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.backends.base import SessionOptions
from hybrid_rt.errors import BackendError
from hybrid_rt.spec import ModelSpec

__all__ = ["FakeSession"]

_GRID = 7  # rows and columns of its heatmaps


class FakeSession:
    """A Session made from a spec alone; ``run`` takes at least ``delay`` seconds."""

    backend = "fake"
    device = "cpu"

    def __init__(self, spec: ModelSpec, *, delay: float = 0.0, explain: bool = False) -> None:
        self._spec = spec
        self._delay = delay
        self._closed = False
        self.detail = "no model, fixed outputs"
        heatmaps = ("heatmap_vit", "heatmap_cnn") if explain else ()
        self.output_names: tuple[str, ...] = ("probabilities", "logits", "features", *heatmaps)
        random = np.random.default_rng(0)
        self._to_features = random.standard_normal((12, spec.num_features)).astype(np.float32)
        self._to_logits = random.standard_normal((12, len(spec.classes))).astype(np.float32)

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> FakeSession:
        """Return a session that does not read ``path``."""
        heatmaps = any(o.name.startswith("heatmap_") for o in options.spec.outputs)
        return cls(options.spec, explain=heatmaps)

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """See Session.run."""
        if self._closed:
            raise BackendError("this session is closed; open the model again")
        if self._delay:
            time.sleep(self._delay)
        quarters = np.stack([_quarters(image) for image in images])  # [b, 12]
        logits = np.stack([row @ self._to_logits for row in quarters])
        scaled = logits / np.float32(self._spec.temperature)
        raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        outputs = {
            "probabilities": raised / raised.sum(axis=1, keepdims=True),
            "logits": logits,
            "features": np.stack([row @ self._to_features for row in quarters]),
        }
        if "heatmap_vit" in self.output_names:
            maps = np.stack([_brightness(image) for image in images])
            outputs |= {"heatmap_vit": maps, "heatmap_cnn": maps.max() - maps}
        return outputs

    def close(self) -> None:
        """See Session.close."""
        self._closed = True


def _quarters(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean of each quarter and channel, 0 to 1: ``[12]``."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    quarters = [image[y : y + height, x : x + width] for y in (0, height) for x in (0, width)]
    means = np.stack([quarter.mean(axis=(0, 1)) for quarter in quarters])  # [4, 3]
    return (means.reshape(-1) / 255).astype(np.float32)


def _brightness(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    rows = np.array_split(image.mean(axis=2), _GRID, axis=0)
    cells = [[cell.mean() for cell in np.array_split(row, _GRID, axis=1)] for row in rows]
    return np.array(cells, np.float32) / np.float32(255)
