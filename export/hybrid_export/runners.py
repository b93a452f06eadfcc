"""Ways to get an exported file's outputs, each saying what really ran."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid_rt.errors import BackendError, BackendMissingError
from hybrid_rt.spec import ModelSpec
from hybrid_train.model import HybridClassifier

Outputs = dict[str, NDArray[np.float32]]

#: Images of one call; the accuracy is measured in batches of this size.
BATCH = 8


@dataclass(frozen=True)
class Runner:
    """``run`` maps uint8 ``[batch, height, width, 3]`` to outputs; ``detail`` says what it is."""

    run: Callable[[NDArray[np.uint8]], Outputs]
    detail: str

    def all(self, images: NDArray[np.uint8], batch: int = BATCH) -> Outputs:
        """Outputs of any number of images, a batch at a time."""
        parts = [self.run(images[i : i + batch]) for i in range(0, len(images), batch)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def pytorch(model: HybridClassifier, spec: ModelSpec) -> Runner:
    """The reference: the trained network itself in fp32, not the deployment graph."""
    model = model.eval().float()

    def run(images: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
            features = model.forward_features(pixels.float() / 255)
            logits = model.head(features)
            probabilities = (logits / spec.temperature).softmax(-1)
        return {
            "probabilities": probabilities.numpy(),
            "logits": logits.numpy(),
            "features": features.numpy(),
        }

    return Runner(run, f"PyTorch {torch.__version__} fp32")


def onnx_runtime(path: Path, *, outputs: list[str] | None = None) -> Runner:
    """An ONNX file on ONNX Runtime's CPU provider."""
    try:
        import onnxruntime as ort
    except ImportError as err:
        raise BackendMissingError(
            "onnxruntime is not installed, so nothing can be certified; "
            "pip install 'hybrid-rt[cpu]'"
        ) from err
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime's exceptions have no common class
        raise BackendError(f"ONNX Runtime cannot open {path.name}: {err}") from err
    names = outputs or [output.name for output in session.get_outputs()]
    feed = session.get_inputs()[0].name

    def run(images: NDArray[np.uint8]) -> Outputs:
        values = session.run(names, {feed: np.ascontiguousarray(images)})
        return dict(zip(names, values, strict=True))

    return Runner(run, f"onnxruntime {ort.__version__} {session.get_providers()[0]}")
