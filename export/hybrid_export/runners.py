"""Ways to get an exported file's outputs, each saying what really ran."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid_export.network.saliency_reference import heatmaps
from hybrid_rt.backends.registry import open_session
from hybrid_rt.errors import BackendMissingError
from hybrid_rt.spec import ModelSpec
from hybrid_train.model.hybrid import HybridClassifier

Outputs = dict[str, NDArray[np.float32]]

#: Images of one call; the accuracy is measured in batches of this size.
BATCH = 8


@dataclass(frozen=True)
class Runner:
    """``run`` maps uint8 ``[batch, height, width, 3]`` to outputs; ``detail`` says what it is.

    ``backend``, ``device`` and ``precision_hint`` are the runtime's, None where it is not one.
    """

    run: Callable[[NDArray[np.uint8]], Outputs]
    detail: str
    backend: str | None = None
    device: str | None = None
    precision_hint: str | None = None

    def all(self, images: NDArray[np.uint8], batch: int = BATCH) -> Outputs:
        """Outputs of any number of images, a batch at a time."""
        chunks = [self.run(images[i : i + batch]) for i in range(0, len(images), batch)]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def pytorch(model: HybridClassifier, spec: ModelSpec) -> Runner:
    """The reference: the trained network itself in fp32, not the deployment graph."""
    model = model.eval().float()
    explained = any(output.name.startswith("heatmap_") for output in spec.outputs)

    def run(images: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
            features = model.forward_features(pixels.float() / 255)
            logits = model.head(features)
            probabilities = (logits / spec.temperature).softmax(-1)
        outputs = {
            "probabilities": probabilities.numpy(),
            "logits": logits.numpy(),
            "features": features.numpy(),
        }
        return {**outputs, **heatmaps(model, images)} if explained else outputs

    return Runner(run, f"PyTorch {torch.__version__} fp32")


def session(
    path: Path, spec: ModelSpec, backend: str = "onnxruntime", *, device: str = "cpu",
    precision: str | None = None,
) -> Runner:  # fmt: skip
    """A file through the runtime's own session: what a user of hybrid_rt will run."""
    try:
        opened = open_session(path, spec=spec, backend=backend, device=device, precision=precision)
    except BackendMissingError as err:
        raise BackendMissingError(f"{path.name} cannot be validated: {err}") from err
    detail = f"{opened.backend} {_version(opened.backend)} {opened.detail}"
    return Runner(opened.run, detail, opened.backend, opened.device, precision)


def _version(backend: str) -> str:
    names = {"tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx-cu13-bindings")}
    for name in (*names.get(backend, ()), backend, f"{backend}-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "(version unknown)"
