"""The contract of every backend: the same outputs for an image, alone, in batches, in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt import HybridEngine

OUTPUTS = ("probabilities", "logits", "features")

Outputs = dict[str, NDArray[np.float32]]


def run_alone(path: Path, pixels: NDArray[np.uint8]) -> Outputs:
    """Return the outputs of ONNX Runtime on the CPU, one image per call."""
    with HybridEngine(path, backend="onnxruntime", device="cpu") as engine:
        return {
            name: np.concatenate([engine.run(p[None])[name] for p in pixels]) for name in OUTPUTS
        }


def check_contract(
    path: Path,
    pixels: NDArray[np.uint8],
    reference: Outputs,
    arguments: dict[str, Any],
    tolerance: float,
) -> None:
    """Compare a backend with reference outputs, printing the gaps.

    Args:
        pixels: uint8 ``[N,H,W,3]``, at least 11 images.
        reference: The outputs for each of them, from ``run_alone``.
        arguments: HybridEngine's arguments that choose the backend.
        tolerance: The largest difference allowed.
    """
    order = np.random.default_rng(0).permutation(len(pixels))
    with HybridEngine(path, batch_size=4, **arguments) as engine:
        assert arguments["backend"].startswith(engine.info["backend"])
        for size in (1, 2, 3, 4, 8, 11):
            chunks = [engine.run(pixels[i : i + size]) for i in range(0, len(pixels), size)]
            shuffled = engine.run(pixels[order[:size]])
            for name in OUTPUTS:
                values = np.concatenate([chunk[name] for chunk in chunks])
                assert values.dtype == np.float32
                assert values.flags.c_contiguous
                gap = np.abs(values - reference[name]).max()
                moved = np.abs(shuffled[name] - reference[name][order[:size]]).max()
                print(f"{engine!r} batch {size} {name} max_diff={gap:.1e} shuffled={moved:.1e}")
                assert max(gap, moved) <= tolerance
