"""Inference backends: one small class each behind the Session protocol."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Session(Protocol):
    """An opened model file on one device.

    ``run`` may be called from many threads at once.
    """

    #: The library: "onnxruntime", "openvino", "tensorrt" or "fake".
    backend: str
    #: Where it really runs: "cpu" or "cuda:0".
    device: str
    #: What really runs, in a few words, such as "CPUExecutionProvider" or "bf16, 2 streams".
    detail: str
    #: Names of the outputs, in the graph's order.
    output_names: tuple[str, ...]

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Outputs by name, the caller's to keep, for uint8 ``[batch, height, width, 3]``."""
        ...

    def close(self) -> None:
        """Free what the library holds. May be called twice."""
        ...
