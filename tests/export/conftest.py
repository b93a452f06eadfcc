"""A tiny hybrid, its checkpoint, its ONNX file and some images, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories.tiny_hybrid import make_model, write_images
from hybrid_export import pipeline
from hybrid_export.network.deployment import DeploymentGraph
from hybrid_export.onnx_graph.convert import to_onnx
from hybrid_export.onnx_graph.io import load, save
from hybrid_rt.spec import ModelSpec
from hybrid_train.model.checkpoint import save_checkpoint
from hybrid_train.model.hybrid import HybridClassifier


@pytest.fixture(scope="session")
def tiny_model() -> tuple[HybridClassifier, ModelSpec]:
    model, spec = make_model()
    return model, spec.replace(outputs=DeploymentGraph(model, spec).outputs(spec))


@pytest.fixture(scope="session")
def tiny_onnx(
    tiny_model: tuple[HybridClassifier, ModelSpec], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return save(to_onnx(DeploymentGraph(*tiny_model), tiny_model[1]), path)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 12)


@pytest.fixture(scope="session")
def checkpoint(
    tiny_model: tuple[HybridClassifier, ModelSpec], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "best.safetensors"
    save_checkpoint(path, *tiny_model)
    return path


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, tiny_onnx: Path) -> None:
    """Tracing takes seconds; the session's ONNX model is the same."""
    monkeypatch.setattr(pipeline, "to_onnx", lambda *_, **__: load(tiny_onnx))
