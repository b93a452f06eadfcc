"""The detector at run time: the file beside the model, outliers, abstaining, damaged files."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from factories.parity_reports import parity_report
from factories.tiny_onnx import tiny_spec, write_tiny_onnx
from hybrid_rt import DigestError, HybridEngine, ModelFileError, SpecError, UsageError
from hybrid_rt.bundle.manifest import Bundle, describe_file
from hybrid_rt.cli import main
from hybrid_rt.testing import FakeSession
from hybrid_rt.uncertainty.ood import EXTRAS_KEY, OOD_NAME, OodDetector, OodEntry

SIZE = 32


def gaussian(features, false_alarms=0.01):
    """A detector of some features, by numpy alone: no directions, one variance."""
    mean = features.mean(0).astype(np.float32)
    bare = OodDetector(
        mean=mean,
        scale=np.full_like(mean, features.std()),
        basis=np.empty((0, mean.size), np.float32),
        variances=np.empty(0, np.float32),
        rest=np.ones(1, np.float32),
        reference=np.ones(1, np.float32),
        false_alarms=false_alarms,
    )
    return replace(bare, reference=np.sort(bare.distances(features)))


@pytest.fixture(scope="module")
def grey():
    """Images like the training's: dim noise, each with a brightness of its own."""
    random = np.random.default_rng(3)
    noise = random.integers(0, 60, (40, SIZE, SIZE, 3), np.uint8)
    return noise + random.integers(0, 60, (40, 1, 1, 1), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, grey):
    """model.onnx, its detector's file and model.json."""
    folder = tmp_path_factory.mktemp("ood")
    path = write_tiny_onnx(folder / "model.onnx", tiny_spec(size=SIZE))
    with HybridEngine(path, backend="onnxruntime") as engine:
        entry = gaussian(engine.features(grey)).save(folder / OOD_NAME)
    spec = tiny_spec(size=SIZE, extras={EXTRAS_KEY: entry.to_dict()})
    write_tiny_onnx(path, spec)
    Bundle(
        spec=spec,
        files={"model.onnx": describe_file(path, precision="fp32", parity_report=parity_report())},
    ).save(folder)
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def white(tmp_path_factory):
    path = tmp_path_factory.mktemp("white") / "white.png"
    Image.new("RGB", (SIZE, SIZE), "white").save(path)
    return path


@pytest.mark.parametrize("name", ["", "model.onnx"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_out_of_distribution_images_are_flagged(folder, grey, white, name, backend):
    with HybridEngine(folder / name, backend=backend) as engine:
        assert engine.detects_ood
        known, outlier = engine.predict(grey), engine.predict(white)
        assert max(p.ood_score for p in known) <= 1.01
        assert [p.is_ood for p in known].count(True) <= 1
        assert outlier.ood_score > 3
        assert outlier.is_ood
        assert outlier.label is not None  # it still predicts, unless it is told to abstain
        assert "unlike the training images" in outlier.headline
        alone = [engine.predict(image).ood_score for image in grey[:5]]
        gap = np.abs(np.subtract(alone, [p.ood_score for p in known[:5]])).max()
        assert gap < 1e-4, gap


def test_abstaining(folder, grey, white):
    with HybridEngine(folder) as engine:
        known, outlier = engine.predict([grey[0], str(white)], abstain=True, threshold=0.0)
        assert known.label in engine.spec.classes
        assert not known.abstained
        assert known.decision
        assert outlier.abstained
        assert (outlier.label, outlier.probability) == (None, None)
        assert (outlier.decision, outlier.prediction_set) == (None, None)
        assert set(outlier.probabilities) == set(engine.spec.classes)
        assert json.loads(json.dumps(outlier.to_dict()))["label"] is None
        assert outlier.headline.startswith("abstained")
        assert "abstained" in outlier._repr_html_()
        assert next(iter(engine.stream([white], abstain=True))).abstained
        both = engine.predict([grey[0], str(white)], abstain=True)
        assert both.labels == [known.label, None]
        assert "abstained" in repr(both)
        assert "abstained" in both._repr_html_()


def test_the_command(folder, white, images, tmp_path, capsys):
    output = tmp_path / "a.csv"
    paths = [str(white), str(images[0])]
    assert main([str(folder), *paths, "--abstain", "--format", "csv", "--output", str(output)]) == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["label"] == rows[0]["probability"] == ""
    assert rows[0]["is_ood"] == "true"
    assert float(rows[0]["ood_score"]) > 3
    assert list(rows[0])[-3:] == ["ood_score", "is_ood", "error"]
    assert main([str(folder), *paths, "--abstain"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[1] == "abstained"
    assert main([str(folder), str(white), "--format", "jsonl"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["is_ood"] is True
    assert line["label"] is not None


def test_bundle_without_its_ood_file_is_an_error(copied):
    (copied / OOD_NAME).unlink()
    for path in (copied, copied / "model.onnx"):
        with pytest.raises(ModelFileError, match=r"no image would be flagged .* copy the complete"):
            HybridEngine(path)


def test_lone_model_without_its_ood_file_warns(copied, white, caplog):
    (copied / OOD_NAME).unlink()
    (copied / "model.json").unlink()
    with HybridEngine(copied / "model.onnx") as engine:
        assert "model.ood.npz is not in" in caplog.text
        assert engine.predict(white).is_ood is None
        with pytest.raises(ModelFileError, match=r"model\.ood\.npz is not in .*copy the complete"):
            engine.predict(white, abstain=True)


def test_another_file_is_an_error(copied):
    path = copied / OOD_NAME
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(
        DigestError, match=r"is not the file that .* names .*copy the complete bundle"
    ):
        HybridEngine(copied)


def test_files_that_do_not_fit(tmp_path, grey):
    good = gaussian(np.random.default_rng(0).normal(0, 1, (50, 16)).astype(np.float32))
    spec = tiny_spec()

    def load(detector_or_bytes, **changes):
        path = tmp_path / OOD_NAME
        if isinstance(detector_or_bytes, bytes):
            path.write_bytes(detector_or_bytes)
            from hybrid_rt.files import sha256_bytes

            entry = OodEntry(
                file=OOD_NAME, sha256=sha256_bytes(detector_or_bytes), false_alarms=0.01
            )
        else:
            entry = detector_or_bytes.save(path)
        data = {**entry.to_dict(), **changes}
        return OodDetector.load(tmp_path, spec.replace(extras={EXTRAS_KEY: data}))

    again = load(good)
    assert all(
        np.array_equal(getattr(again, n), getattr(good, n)) for n in ("mean", "scale", "reference")
    )
    assert load(good, false_alarms=0.2).threshold < again.threshold
    with pytest.raises(ModelFileError, match="is not an out-of-distribution file"):
        load(b"no npz at all")
    other = gaussian(np.random.default_rng(0).normal(0, 1, (50, 7)).astype(np.float32))
    with pytest.raises(ModelFileError, match="is for 7 features; the model has 16"):
        load(other)
    for change, message in (
        ({"file": "../model.ood.npz"}, "expected a plain file name"),
        ({"file": ".hidden"}, "expected a plain file name"),
        ({"sha256": "abc"}, "expected 64 hexadecimal digits"),
        ({"false_alarms": 0}, "expected between 0 and 1"),
        ({"method": "energy"}, "expected one of 'mahalanobis'"),
        ({"more": 1}, "more is unknown"),
    ):
        with pytest.raises(SpecError, match=message):
            load(good, **change)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mean", np.full(16, np.nan, np.float32), "OOD detector's mean .*expected finite float32"),
        ("mean", np.zeros(16), "OOD detector's mean is float64"),
        ("basis", np.zeros((2, 5), np.float32), "OOD detector's basis"),
        ("variances", np.ones(3, np.float32), "OOD detector's variances"),
        ("scale", np.zeros(16, np.float32), "expected positive numbers"),
        ("reference", np.array([2, 1], np.float32), "distances that rise"),
        ("reference", np.empty(0, np.float32), "distances that rise, at least one"),
        ("reference", np.zeros(3, np.float32), "threshold is 0"),
    ],
)
def test_arrays_that_cannot_be(name, value, message):
    good = gaussian(np.random.default_rng(0).normal(0, 1, (50, 16)).astype(np.float32))
    with pytest.raises(ModelFileError, match=message):
        replace(good, **{name: value})


def test_the_threshold_has_the_finite_sample_rank():
    reference = np.arange(1, 200, dtype=np.float32)  # 199 distances
    good = gaussian(np.random.default_rng(0).normal(0, 1, (50, 16)).astype(np.float32))
    assert replace(good, reference=reference).threshold == 198  # ceil(200 * 0.99)
    assert replace(good, reference=reference, false_alarms=0.1).threshold == 180
    assert replace(good, reference=reference[:50]).threshold == 50  # too few: the largest


def test_features_that_are_not_finite_are_flagged():
    good = gaussian(np.random.default_rng(0).normal(0, 1, (50, 16)).astype(np.float32))
    features = np.zeros((3, 16), np.float32)
    features[0, 3], features[1, 3], features[2, 3] = np.nan, np.inf, 3e38
    scores = good.score(features)
    assert np.isfinite(scores).all()
    assert (scores > 1).all()
    json.dumps(scores.tolist(), allow_nan=False)


def test_models_without_detector_say_so():
    spec = tiny_spec()
    engine = HybridEngine.from_session(FakeSession(spec), spec)
    prediction = engine.predict(np.zeros((32, 32, 3), np.uint8))
    assert (prediction.ood_score, prediction.is_ood) == (None, None)
    assert "ood_score" not in prediction.to_dict()
    with pytest.raises(ModelFileError, match="has no out-of-distribution detector"):
        engine.rules(abstain=True)
    with pytest.raises(UsageError):
        engine.rules(threshold=2)
