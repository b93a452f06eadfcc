"""The self-test tells a preprocessing fault from an engine fault."""

import dataclasses
import re

import numpy as np
import pytest

from factories.parity_reports import parity_report
from factories.tiny_onnx import tiny_spec, write_tiny_onnx
from hybrid_rt import HybridEngine, ModelFileError, SpecError
from hybrid_rt.backends.registry import open_session
from hybrid_rt.bundle.golden import GoldenImages
from hybrid_rt.bundle.manifest import Bundle, Golden, describe_file
from hybrid_rt.files import sha256_file
from hybrid_rt.testing import FakeSession


def replace_golden(folder, **changes):
    bundle = Bundle.load(folder)
    golden = dataclasses.replace(bundle.load_golden(), **changes)
    path = golden.save(folder / "model.golden.npz")
    entry = Golden(file=path.name, sha256=sha256_file(path), count=len(golden.names))
    dataclasses.replace(bundle, golden=entry, folder=None).save(folder)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_passes(bundle_folder, backend):
    with HybridEngine(bundle_folder, backend=backend) as engine:
        result = engine.selftest()
    assert result.passed, result.text
    assert result
    assert result.images == 2
    assert result.logits_max_abs <= 1e-5
    assert result.tolerance == 1e-4
    assert "passed" in str(result)
    assert result.to_dict()["passed"] is True


def test_preprocessing_fault(bundle_folder):
    golden = Bundle.load(bundle_folder).load_golden()
    replace_golden(bundle_folder, pixels_sha256=("0" * 64, golden.pixels_sha256[1]))
    with HybridEngine(bundle_folder, backend="onnxruntime") as engine:
        result = engine.selftest()
    assert not result.passed
    assert list(result.preprocessing_faults) == ["p0.png"]
    assert result.engine_faults == {}
    assert "versions of Pillow" in result.text


def test_unreadable_golden_image_is_a_pixel_fault(bundle_folder):
    golden = Bundle.load(bundle_folder).load_golden()
    replace_golden(bundle_folder, encoded=(b"junk", golden.encoded[1]))
    with HybridEngine(bundle_folder, backend="onnxruntime") as engine:
        result = engine.selftest()
    assert "cannot be read here" in result.preprocessing_faults["p0.png"]


def test_engine_fault_by_other_weights(bundle_folder):
    spec = Bundle.load(bundle_folder).spec
    path = write_tiny_onnx(bundle_folder / "model.onnx", spec, seed=5)
    bundle = Bundle.load(bundle_folder)
    entry = describe_file(path, precision="fp32", parity_report=parity_report())
    dataclasses.replace(bundle.with_file(path.name, entry), folder=None).save(bundle_folder)
    with HybridEngine(bundle_folder, backend="onnxruntime") as engine:
        result = engine.selftest()
    assert result.preprocessing_faults == {}
    assert sorted(result.engine_faults) == ["p0.png", "p1.png"]
    assert "engine fault: p0.png: logits differ by" in result.text


def test_nan_is_an_engine_fault(bundle_folder):
    class NanSession(FakeSession):
        def run(self, images):
            return {name: np.full_like(v, np.nan) for name, v in super().run(images).items()}

    bundle = Bundle.load(bundle_folder)
    engine = HybridEngine.from_session(NanSession(bundle.spec), bundle.spec, bundle=bundle)
    assert len(engine.selftest().engine_faults) == 2


def test_without_golden_images(tiny_onnx, bundle_folder):
    with HybridEngine(tiny_onnx) as engine, pytest.raises(ModelFileError, match="has no bundle"):
        engine.selftest()
    bundle = dataclasses.replace(Bundle.load(bundle_folder), golden=None, folder=None)
    bundle.save(bundle_folder)
    with HybridEngine(bundle_folder) as engine, pytest.raises(ModelFileError, match="no golden"):
        engine.selftest()


def test_default_tolerance_grows_with_the_logits():
    from hybrid_rt.selftest import run_selftest

    spec = tiny_spec()
    session = FakeSession(spec)
    pixels = np.zeros((32, 32, 3), np.uint8)
    golden = GoldenImages(
        names=("a",),
        encoded=(b"a",),
        pixels_sha256=("x",),
        logits=np.full((1, 2), 50, np.float32),
        probabilities=np.full((1, 2), 0.5, np.float32),
        features=np.zeros((1, 16), np.float32),
    )
    result = run_selftest(golden, None, spec, lambda _: pixels, session.run)
    assert result.tolerance == pytest.approx(0.05)
    assert np.isnan(result.logits_max_abs)


class Sabotaged:
    """A session whose outputs are changed by ``sabotage(outputs)``."""

    def __init__(self, session, sabotage):
        self._session, self._sabotage = session, sabotage
        self.backend, self.device, self.detail = session.backend, session.device, session.detail
        self.output_names = session.output_names

    def run(self, images):
        outputs = {name: np.array(values) for name, values in self._session.run(images).items()}
        self._sabotage(outputs)
        return outputs

    def close(self):
        self._session.close()


def other_temperature(outputs):
    raised = np.exp(outputs["logits"] / 1.5)
    outputs["probabilities"] = raised / raised.sum(axis=1, keepdims=True)


def permuted(outputs):
    outputs["probabilities"] = outputs["probabilities"][:, ::-1]


def scaled(name, factor):
    def sabotage(outputs):
        outputs[name] *= factor

    return sabotage


def swapped_in_batches(outputs):
    if len(outputs["logits"]) > 1:
        outputs["logits"] = outputs["logits"][:, ::-1]
        outputs["probabilities"] = outputs["probabilities"][:, ::-1]


@pytest.mark.parametrize(
    ("sabotage", "message"),
    [
        (lambda outputs: None, None),
        (other_temperature, "probabilities differ from softmax"),
        (permuted, "probabilities differ from softmax"),
        (scaled("probabilities", 6.9), "probabilities differ from softmax"),
        (scaled("probabilities", np.nan), "probabilities differ from softmax"),
        (scaled("features", 2), "features have a cosine of 1.00000 .* and a length of"),
        (scaled("features", 0), "features have a cosine of 0.00000"),
        (scaled("features", np.nan), "features have a cosine of nan"),
        (swapped_in_batches, "in a batch of 2"),
    ],
)
def test_selftest_finds_each_sabotage(bundle_folder, sabotage, message):
    bundle = Bundle.load(bundle_folder)
    session = open_session(
        bundle_folder / "model.onnx", spec=bundle.spec, backend="onnxruntime", device="cpu"
    )
    engine = HybridEngine.from_session(Sabotaged(session, sabotage), bundle.spec, bundle=bundle)
    with engine:
        result = engine.selftest()
    if message is None:
        assert result.passed, result.text
    else:
        assert sorted(result.engine_faults) == ["p0.png", "p1.png"]
        assert re.search(message, result.text), result.text


def test_manifest_with_another_spec_than_its_file_is_refused(bundle_folder):
    bundle = Bundle.load(bundle_folder)
    preprocess = dataclasses.replace(bundle.spec.preprocess, dicom_window="minmax")
    for spec in (
        bundle.spec.replace(classes=bundle.spec.classes[::-1]),
        bundle.spec.replace(preprocess=preprocess),
    ):
        dataclasses.replace(bundle, spec=spec, folder=None).save(bundle_folder)
        for path in (bundle_folder, bundle_folder / "model.onnx"):
            with pytest.raises(SpecError, match="carries another specification than the model"):
                HybridEngine(path)
