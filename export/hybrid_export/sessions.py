"""The runtime's Session for exported files, and one for the PyTorch network that they came from."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid_export.network.saliency_reference import heatmaps
from hybrid_rt.backends.base import Outputs, Session
from hybrid_rt.backends.registry import BACKENDS, open_session
from hybrid_rt.errors import BackendMissingError
from hybrid_rt.spec import ModelSpec
from hybrid_train.model.hybrid import HybridClassifier

#: Images of one call; the accuracy is measured in batches of this size.
BATCH = 8


class PyTorchSession:
    """The reference: the trained network itself in fp32, not the deployment graph."""

    backend = "pytorch"
    device = "cpu"

    def __init__(self, model: HybridClassifier, spec: ModelSpec) -> None:
        self._model = model.eval().float()
        self._temperature = spec.temperature
        self.detail = f"PyTorch {torch.__version__} fp32"
        self.output_names = tuple(output.name for output in spec.outputs)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See Session.run; with the heatmaps if the spec lists them."""
        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
            features = self._model.forward_features(pixels.float() / 255)
            logits = self._model.head(features)
            probabilities = (logits / self._temperature).softmax(-1)
        outputs = {
            "probabilities": probabilities.numpy(),
            "logits": logits.numpy(),
            "features": features.numpy(),
        }
        explained = any(name.startswith("heatmap_") for name in self.output_names)
        return {**outputs, **heatmaps(self._model, images)} if explained else outputs

    def close(self) -> None:
        """See Session.close."""


def open_file(
    path: Path, spec: ModelSpec, backend: str = "onnxruntime", *, device: str = "cpu",
    precision: str | None = None,
) -> Session:  # fmt: skip
    """Open an exported file as a user of hybrid_rt does."""
    try:
        return open_session(path, spec=spec, backend=backend, device=device, precision=precision)
    except BackendMissingError as err:
        raise BackendMissingError(f"{path.name} cannot be validated: {err}") from err


def run_batches(session: Session, images: NDArray[np.uint8], batch: int = BATCH) -> Outputs:
    """Return the outputs of any number of images, computed ``batch`` at a time."""
    chunks = [session.run(images[i : i + batch]) for i in range(0, len(images), batch)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def is_runtime(session: Session) -> bool:
    """Return whether the session is one of the runtime's, so that its report is of use there."""
    return session.backend in BACKENDS


def describe(session: Session) -> str:
    """Return what runs, such as "onnxruntime 1.23.2 CPUExecutionProvider"."""
    if not is_runtime(session):
        return session.detail
    return f"{session.backend} {_version(session.backend)} {session.detail}"


def _version(backend: str) -> str:
    names = {"tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx-cu13-bindings")}
    for name in (*names.get(backend, ()), backend, f"{backend}-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "(version unknown)"
