"""A tiny model on disk, and images for it."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from factories.parity_reports import parity_report
from factories.tiny_onnx import tiny_spec, write_tiny_onnx
from hybrid_rt import HybridEngine
from hybrid_rt.bundle.golden import GoldenImages, pixels_digest
from hybrid_rt.bundle.manifest import Bundle, Golden, describe_file
from hybrid_rt.files import sha256_file

SIZE = 32


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """model.onnx with its spec in the metadata, and no bundle."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_onnx(folder / "model.onnx", tiny_spec(size=SIZE))
    return folder


@pytest.fixture(scope="session")
def tiny_onnx(tiny_folder):
    return tiny_folder / "model.onnx"


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Six PNG files of different sizes."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(1)
    paths = []
    for i in range(6):
        pixels = random.integers(0, 256, (40 + i, 50, 3), np.uint8)
        paths.append(folder / f"p{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def pixels():
    return np.random.default_rng(2).integers(0, 256, (11, SIZE, SIZE, 3), np.uint8)


@pytest.fixture
def bundle_folder(tmp_path, images):
    """A validated bundle with two files and golden images; its explain outputs included."""
    spec = tiny_spec(size=SIZE, explain=True)
    write_tiny_onnx(tmp_path / "model.onnx", spec)
    with HybridEngine(tmp_path / "model.onnx", backend="onnxruntime") as engine:
        loaded = np.stack([engine.load(path) for path in images[:2]])
        outputs = engine.run(loaded)
    golden = GoldenImages(
        names=tuple(path.name for path in images[:2]),
        encoded=tuple(path.read_bytes() for path in images[:2]),
        pixels_sha256=tuple(pixels_digest(image) for image in loaded),
        logits=outputs["logits"],
        probabilities=outputs["probabilities"],
        features=outputs["features"],
    )
    path = golden.save(tmp_path / "model.golden.npz")
    bundle = Bundle(
        spec=spec,
        files={
            "model.onnx": describe_file(
                tmp_path / "model.onnx", precision="fp32", parity_report=parity_report()
            )
        },
        golden=Golden(file=path.name, sha256=sha256_file(path), count=2),
    )
    bundle.save(tmp_path)
    return tmp_path


@pytest.fixture
def with_files():
    """Add copies of model.onnx to a bundle, under other names and precisions."""

    def add(folder, **precisions):
        bundle = Bundle.load(folder)
        for name, (precision, passed) in precisions.items():
            path = folder / f"model.{name}.onnx"
            path.write_bytes((folder / "model.onnx").read_bytes())
            found = parity_report(precision, passed)
            bundle = bundle.with_file(
                path.name, describe_file(path, precision=precision, parity_report=found)
            )
        dataclasses.replace(bundle, folder=None).save(folder)

    return add
