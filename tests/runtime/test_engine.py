"""HybridEngine: one and many, names in errors, digests, threads of life and death."""

import io
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from factories.tiny_onnx import tiny_spec, write_tiny_onnx
from hybrid_rt import (
    BackendError,
    DigestError,
    HybridEngine,
    ImageError,
    ModelFileError,
    ModelSpec,
    Prediction,
    PredictionError,
    Predictions,
    UsageError,
)
from hybrid_rt.spec import OperatingPoint
from hybrid_rt.testing import FakeSession

BACKENDS = ["onnxruntime", "openvino"]


@pytest.fixture(scope="module", params=BACKENDS)
def engine(request, tiny_onnx):
    with HybridEngine(tiny_onnx, backend=request.param, batch_size=4) as engine:
        yield engine


def test_one_image_returns_a_prediction(engine, images):
    prediction = engine.predict(images[0])
    assert isinstance(prediction, Prediction)
    assert prediction.source == str(images[0])
    assert prediction.label == prediction.top(1)[0][0]
    assert prediction.probability == max(prediction.probabilities.values())
    assert list(prediction.probabilities) == ["benign", "malignant"]
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)
    softmax = np.exp(prediction.logits) / np.exp(prediction.logits).sum()
    assert list(prediction.probabilities.values()) == pytest.approx(softmax.tolist(), abs=1e-6)


def test_every_kind_of_source_returns_the_same(engine, images):
    data = images[0].read_bytes()
    image = Image.open(io.BytesIO(data))
    sources = [str(images[0]), images[0], data, io.BytesIO(data), image, np.asarray(image)]
    logits = [engine.predict(source).logits for source in sources]
    for other in logits[1:]:
        np.testing.assert_array_equal(other, logits[0])


def test_many_in_order_equal_one_by_one(engine, images):
    predictions = engine.predict(images)
    assert isinstance(predictions, Predictions)
    assert [a.source for a in predictions] == [str(p) for p in images]
    alone = np.stack([engine.predict(p).logits for p in images])
    gap = np.abs(predictions.logits - alone).max()
    print(f"{engine.info['backend']} alone and in a batch: max_diff={gap:.2e}")
    assert gap <= 1e-5


def test_lists_arrays_and_generators(engine, pixels):
    expected = engine.predict(pixels).logits
    assert expected.shape == (11, 2)
    np.testing.assert_array_equal(engine.predict(list(pixels)).logits, expected)
    np.testing.assert_array_equal(engine.predict(p for p in pixels).logits, expected)
    assert isinstance(engine.predict(pixels[0]), Prediction)
    assert isinstance(engine.predict([pixels[0]]), Predictions)
    assert len(engine.predict([])) == 0
    for size in (1, 3, 4, 5, 16):
        gap = np.abs(engine.predict(pixels, batch_size=size).logits - expected).max()
        assert gap <= 1e-5, f"batch_size={size} max_diff={gap:.2e}"


def test_engine_call_is_predict(engine, images, pixels):
    called, predicted = engine(images[0]), engine.predict(images[0])
    assert isinstance(called, Prediction)
    np.testing.assert_array_equal(called.logits, predicted.logits)
    many = engine(pixels, batch_size=3)
    np.testing.assert_array_equal(many.logits, engine.predict(pixels, batch_size=3).logits)
    with pytest.raises(UsageError, match="threshold is 2"):
        engine(images, threshold=2)


def test_engine_classes_is_a_tuple_of_names(engine):
    assert engine.classes == ("benign", "malignant")


def test_folder_and_glob_are_many(engine, images):
    names = [str(path) for path in images]
    expected = engine.predict(images).logits
    for many in (images[0].parent, str(images[0].parent), str(images[0].parent / "p*.png")):
        predictions = engine.predict(many)
        assert isinstance(predictions, Predictions)
        assert [p.source for p in predictions] == names
        np.testing.assert_array_equal(predictions.logits, expected)
        assert engine.features(many).shape == (6, 16)
        assert [p.source for p in engine.stream(many)] == names
    assert len(engine.predict(str(images[0].parent / "p0*"))) == 1


def test_one_image_is_a_stream_of_one(engine, images):
    (prediction,) = engine.stream(str(images[0]))
    assert prediction.source == str(images[0])


def test_a_dict_is_refused(engine, images):
    for method in (engine.predict, engine.features, engine.stream):
        with pytest.raises(ImageError, match="it is of type dict; expected a path"):
            method({"a": images[0]})


@pytest.mark.parametrize("name", ["batch_size", "decode_threads"])
def test_stream_refuses_a_wrong_number(engine, images, name):
    with pytest.raises(UsageError, match=f"{name} is 0; expected a positive integer"):
        engine.stream(images, **{name: 0})


def test_features(engine, pixels, images):
    features = engine.features(pixels)
    assert features.shape == (11, 16)
    assert features.dtype == np.float32
    assert engine.features(images[0]).shape == (1, 16)
    assert engine.features(images).shape == (6, 16)
    assert engine.features([]).shape[0] == 0


def test_stream_keeps_order_and_errors(engine, images, tmp_path):
    empty = tmp_path / "empty.png"
    empty.touch()
    sources = [images[0], tmp_path / "no.png", *images[1:4], empty, images[4]]
    items = list(engine.stream(iter(sources), batch_size=2))
    assert [i.source for i in items] == [str(s) for s in sources]
    assert [isinstance(i, PredictionError) for i in items] == [
        source in (sources[1], sources[5]) for source in sources
    ]
    assert "no.png" in str(items[1].error)
    with pytest.raises(ImageError, match=r"no\.png"):
        list(engine.stream(sources, on_error="raise"))
    with pytest.raises(UsageError, match="on_error is 'ignore'"):
        engine.stream(sources, on_error="ignore")


def test_stream_takes_sources_as_it_needs_them(tiny_onnx, pixels):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield pixels[taken % len(pixels)]

    with HybridEngine(tiny_onnx, backend="onnxruntime") as engine:
        stream = engine.stream(endless(), batch_size=4, decode_threads=2)
        for _ in range(100):
            next(stream)
        assert taken <= 100 + 6 * 4
        stream.close()


def test_errors_name_the_image(engine, images, tmp_path):
    cut = tmp_path / "cut.jpg"
    Image.new("RGB", (60, 60)).save(cut)
    cut.write_bytes(cut.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"cut\.jpg"):
        engine.predict([*images, cut])
    with pytest.raises(ImageError, match="image 1"):
        engine.predict([images[0].read_bytes(), b"junk"])
    with pytest.raises(ImageError, match="int"):
        engine.predict(3)
    with pytest.raises(ImageError, match="float"):
        engine.predict(np.zeros((32, 32, 3), np.float32))
    ranged = engine.predict(np.full((32, 32, 3), 0.5, np.float32), float_range=(0, 1))
    assert isinstance(ranged, Prediction)


def test_run_checks_its_input(engine, pixels):
    for wrong in (pixels[0], pixels[:, :16], pixels.astype(np.float32), pixels[:0], "a.png"):
        with pytest.raises(ImageError, match=re.escape("uint8 [N,32,32,3]")):
            engine.run(wrong)
    flipped = pixels[:, ::-1]
    np.testing.assert_array_equal(
        engine.run(flipped)["logits"], engine.run(flipped.copy())["logits"]
    )


def test_outputs_are_the_callers(engine, pixels):
    first = engine.run(pixels[:1])
    kept = first["logits"].copy()
    engine.run(pixels[1:2])
    np.testing.assert_array_equal(first["logits"], kept)


def test_read_only_pixels(engine, pixels):
    frozen = pixels[:1].copy()
    frozen.flags.writeable = False
    assert engine.run(frozen)["logits"].shape == (1, 2)


def test_repr_and_info(engine, tiny_onnx):
    info = engine.info
    assert info["path"] == str(tiny_onnx)
    assert info["device"] == "cpu"
    assert info["input"] == [32, 32, 3]
    assert info["versions"]["numpy"] == np.__version__
    assert str(tiny_onnx) in repr(engine)
    assert f"{info['backend']} on cpu" in repr(engine)
    assert "32x32, 2 classes" in repr(engine)


def test_close_twice_then_error(tiny_onnx, pixels):
    for backend in BACKENDS:
        engine = HybridEngine(tiny_onnx, backend=backend)
        engine.close()
        engine.close()
        with pytest.raises(BackendError, match="closed"):
            engine.predict(pixels)
        assert "closed" in repr(engine)


def test_pickle_opens_again(tiny_onnx, pixels):
    with HybridEngine(tiny_onnx, backend="onnxruntime", batch_size=3) as engine:
        expected = engine.predict(pixels).logits
        with pickle.loads(pickle.dumps(engine)) as again:
            assert again.batch_size == 3
            np.testing.assert_array_equal(again.predict(pixels).logits, expected)
    session_engine = HybridEngine.from_session(FakeSession(engine.spec), engine.spec)
    with pytest.raises(UsageError, match="from_session"):
        pickle.dumps(session_engine)


def test_from_session(pixels):
    spec = tiny_spec().replace(
        operating_point=OperatingPoint(positive="malignant", threshold=0.0, criterion="all")
    )
    engine = HybridEngine.from_session(FakeSession(spec), spec)
    prediction = engine.predict(pixels[0])
    assert bool(prediction.decision)
    assert str(prediction.decision) == "malignant"
    assert prediction.to_dict()["decision"]["threshold"] == 0.0
    np.testing.assert_array_equal(engine.predict(pixels).logits[0], prediction.logits)


def test_crop_is_applied_to_arrays_of_the_right_size():
    spec = tiny_spec()
    engine = HybridEngine.from_session(FakeSession(spec), spec)
    plain = np.zeros((32, 32, 3), np.uint8)
    assert engine.load(plain) is plain
    cropping = spec.replace(preprocess=type(spec.preprocess)(height=32, width=32, crop="breast"))
    engine = HybridEngine.from_session(FakeSession(cropping), cropping)
    pytest.importorskip("hybrid_rt.images.breast_crop")
    assert engine.load(plain) is not plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, "device is 'gpu'; expected 'auto', 'cpu', 'cuda'"),
        ({"backend": "torch"}, "backend is 'torch'; expected one of"),
        ({"backend": "tensorrt"}, "cannot run model.onnx; expected one of"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"precision": "bf16", "backend": "onnxruntime"}, "precision written in the file"),
        ({"threads": 0}, "threads is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"mode": "fast"}, "mode is 'fast'"),
    ],
)
def test_wrong_arguments(tiny_onnx, arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        HybridEngine(tiny_onnx, **arguments)
    with pytest.raises(UsageError, match="path is int"):
        HybridEngine(3)


def test_wrong_files(tiny_onnx, tmp_path):
    with pytest.raises(ModelFileError, match="does not exist"):
        HybridEngine(tmp_path / "model.onnx")
    (tmp_path / "model.pth").touch()
    with pytest.raises(ModelFileError, match=re.escape("ends in '.pth'")):
        HybridEngine(tmp_path / "model.pth")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ModelFileError, match="the file is empty"):
        HybridEngine(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(tiny_onnx.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="cut short"):
        HybridEngine(tmp_path / "model.onnx")
    write_tiny_onnx(tmp_path / "other.onnx", tiny_spec(), metadata=False)
    with pytest.raises(ModelFileError, match="make the file with hybrid-export"):
        HybridEngine(tmp_path / "other.onnx")


@pytest.mark.parametrize("backend", BACKENDS)
def test_graph_that_does_not_fit_its_spec(tmp_path, backend):
    import onnx

    spec = tiny_spec()
    path = write_tiny_onnx(tmp_path / "model.onnx", spec)
    model = onnx.load(path)
    wrong = spec.replace(preprocess=type(spec.preprocess)(height=64, width=64))
    for metadata in model.metadata_props:
        metadata.value = wrong.to_json()
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="specification has"):
        HybridEngine(path, backend=backend)
    fewer = spec.replace(classes=("a", "b", "c"))
    for metadata in model.metadata_props:
        metadata.value = fewer.to_json()
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=re.escape("specification has [batch,3]")):
        HybridEngine(path, backend=backend)
    model.graph.input[0].name = "pixels"
    model.graph.node[0].input[0] = "pixels"
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="images uint8"):
        HybridEngine(path, backend=backend)


def test_bundle_is_checked_before_the_file_is_read(bundle_folder):
    path = bundle_folder / "model.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestError, match="damaged or from another export"):
        HybridEngine(path)


def test_json_of_another_model_is_an_error(bundle_folder):
    (bundle_folder / "model.json").write_text("{}")
    with pytest.raises(ModelFileError, match="bundle_version is None"):
        HybridEngine(bundle_folder / "model.onnx")


def test_spec_type(engine):
    assert isinstance(engine.spec, ModelSpec)
