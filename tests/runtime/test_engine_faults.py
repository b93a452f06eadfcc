"""Nothing wrong is returned silently: outputs that are not finite, reused buffers, other files."""

import dataclasses
import io
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from factories.parity_reports import parity_report
from factories.tiny_onnx import tiny_spec, write_tiny_onnx
from hybrid_rt import BackendError, DigestError, HybridEngine, ImageError, UsageError
from hybrid_rt.bundle.manifest import Bundle, describe_file
from hybrid_rt.results.prediction import PredictionError
from hybrid_rt.selection import find_model
from hybrid_rt.testing import FakeSession

ROOT = Path(__file__).parents[2]


class NanSession(FakeSession):
    """Returns NaN logits and probabilities for images whose first pixel is white."""

    def run(self, images):
        outputs = super().run(images)
        wrong = images[:, 0, 0, 0] == 255
        for name in ("logits", "probabilities"):
            outputs[name][wrong] = np.nan
        return outputs


@pytest.fixture
def nan_engine():
    spec = tiny_spec()
    return HybridEngine.from_session(NanSession(spec), spec, batch_size=4)


def test_nan_output_raises_for_one_and_many(nan_engine, pixels):
    images = np.array(pixels)
    images[:, 0, 0, 0] = 0
    assert nan_engine.predict(images[0]).label
    images[3, 0, 0, 0] = 255
    for imgs in (images[3], images, list(images), iter(images)):
        with pytest.raises(BackendError, match="logits that is not finite"):
            nan_engine.predict(imgs)
    with pytest.raises(BackendError, match="not finite"):
        nan_engine.features(images)


def test_nan_output_in_a_stream_stays_in_its_place(nan_engine, pixels):
    images = np.array(pixels)
    images[:, 0, 0, 0] = 0
    images[3, 0, 0, 0] = 255
    items = list(nan_engine.stream(iter(images)))
    assert [isinstance(item, PredictionError) for item in items] == [i == 3 for i in range(11)]
    assert isinstance(items[3].error, BackendError)


def refilled(images, make):
    """Yield the same object, filled with one image after the other."""
    shared = make(images[0])
    for image in images:
        if isinstance(shared, np.ndarray):
            shared[...] = image
        elif isinstance(shared, bytearray):
            shared[:] = png(image)
        elif isinstance(shared, Image.Image):
            shared.paste(Image.fromarray(image))
        else:
            shared.seek(0)
            shared.truncate()
            shared.write(png(image))
            shared.seek(0)
        yield shared


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "make",
    [np.array, lambda i: bytearray(png(i)), Image.fromarray, lambda i: io.BytesIO(png(i))],
    ids=["array", "bytearray", "pil", "file"],
)
def test_refilled_buffer_predicts_each_image(tiny_onnx, pixels, make):
    images = [np.ascontiguousarray(image) for image in [*pixels] * 3]
    with HybridEngine(tiny_onnx, backend="onnxruntime", batch_size=4) as engine:
        expected = engine.predict(images).logits
        np.testing.assert_array_equal(engine.predict(refilled(images, make)).logits, expected)
        streamed = [item.logits for item in engine.stream(refilled(images, make))]
        np.testing.assert_array_equal(streamed, expected)


def test_file_closed_by_its_generator_is_read(tiny_onnx, images):
    def opened():
        for path in images:
            with path.open("rb") as file:
                yield file

    with HybridEngine(tiny_onnx, backend="onnxruntime") as engine:
        predictions = engine.predict(opened())
        np.testing.assert_array_equal(predictions.logits, engine.predict(images).logits)
    assert [p.source for p in predictions] == [f"{path} #{i}" for i, path in enumerate(images)]


def test_source_that_raises_costs_no_prediction(tiny_onnx, images):
    def failing():
        yield from images
        raise KeyError("the caller's own")

    with HybridEngine(tiny_onnx, backend="onnxruntime", batch_size=4) as engine:
        found = []
        with pytest.raises(KeyError, match="the caller's own"):
            found.extend(engine.stream(failing()))  # extend keeps what came before
        assert len(found) == len(images)


def test_error_of_an_image_is_not_its_own_cause(tiny_onnx, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(b"junk")
    with HybridEngine(tiny_onnx, backend="onnxruntime") as engine:
        with pytest.raises(ImageError) as error:
            engine.predict([path])
        assert error.value.__cause__ is not error.value


@pytest.mark.parametrize("value", ["a", 2.5, True, 0, -1])
def test_batch_size_that_is_no_count_is_refused(tiny_onnx, pixels, value):
    with pytest.raises(UsageError, match=r"batch_size is .*; expected a positive integer"):
        HybridEngine(tiny_onnx, batch_size=value)
    engine = HybridEngine(tiny_onnx, backend="onnxruntime")
    with engine, pytest.raises(UsageError, match="expected a positive integer"):
        engine.predict(pixels, batch_size=value)


def test_coverage_by_another_word_is_refused(tiny_onnx, pixels):
    engine = HybridEngine(tiny_onnx, backend="onnxruntime")
    with engine, pytest.raises(UsageError, match="coverage_by is 'zzz'; expected 'class' or"):
        engine.predict(pixels, coverage_by="zzz")


def test_explain_of_a_text_file_object_opens_no_path(tmp_path):
    spec = tiny_spec(explain=True)
    engine = HybridEngine.from_session(FakeSession(spec, explain=True), spec)
    path = tmp_path / "image.png"
    Image.new("RGB", (32, 32)).save(path)
    with pytest.raises(ImageError, match="returns text; expected bytes"):
        engine.explain([io.StringIO(str(path))])


@pytest.fixture
def own_folder(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    write_tiny_onnx(folder / "model.onnx", tiny_spec())
    return folder


def test_pickled_engine_opens_the_same_file_elsewhere(own_folder, tmp_path, monkeypatch, pixels):
    other = tmp_path / "other"
    other.mkdir()
    write_tiny_onnx(other / "model.onnx", tiny_spec(), seed=5)
    monkeypatch.chdir(own_folder)
    with HybridEngine("model.onnx", backend="onnxruntime") as engine:
        expected, data = engine.predict(pixels).logits, pickle.dumps(engine)
    monkeypatch.chdir(other)
    with pickle.loads(data) as again:
        np.testing.assert_array_equal(again.predict(pixels).logits, expected)


def test_pickled_engine_refuses_a_replaced_file(own_folder, bundle_folder):
    for path in (own_folder / "model.onnx", bundle_folder):
        with HybridEngine(path, backend="onnxruntime") as engine:
            data = pickle.dumps(engine)
        with pickle.loads(data):
            pass
        target = path if path.is_file() else path / "model.onnx"
        spec = engine.spec
        target.unlink()
        write_tiny_onnx(target, spec, seed=9)
        if path.is_dir():
            shutil.copy(path / "model.json", path / "kept.json")
            (path / "model.json").unlink()
        with pytest.raises(DigestError, match="was replaced after the engine"):
            pickle.loads(data)


def replaced(folder, seed):
    """Another export into a bundle's folder: other weights, and the manifest that fits them."""
    bundle = Bundle.load(folder)
    path = write_tiny_onnx(folder / "new.onnx", bundle.spec, seed=seed)
    path.replace(folder / "model.onnx")
    entry = describe_file(folder / "model.onnx", precision="fp32", parity_report=parity_report())
    dataclasses.replace(bundle.with_file("model.onnx", entry), folder=None).save(folder)


@pytest.mark.parametrize("cache", [True, False])
def test_reexport_does_not_reach_an_open_engine(bundle_folder, tmp_path, pixels, cache):
    """The second batch size is compiled later, from the file as it was opened or not at all."""
    options = {"backend": "openvino", "cache": cache, "batch_size": 4}
    with HybridEngine(bundle_folder, **options) as engine:
        expected = engine.predict(pixels).logits
    shutil.copytree(bundle_folder, tmp_path / "old")
    shutil.rmtree(bundle_folder / ".openvino-cache", ignore_errors=True)
    with HybridEngine(bundle_folder, **options) as engine:
        engine.predict(pixels[0])  # keeps the graph for one image
    with HybridEngine(bundle_folder, **options) as engine:
        one = engine.predict(pixels[0]).logits
        np.testing.assert_allclose(one, expected[0], atol=1e-5)
        replaced(bundle_folder, seed=5)
        if cache:  # the file was not read yet
            with pytest.raises(DigestError, match="was replaced"):
                engine.predict(pixels[:4])
        else:
            four = engine.predict(pixels[:4]).logits
            np.testing.assert_allclose(four, expected[:4], atol=1e-5)
    shutil.copy(tmp_path / "old" / "model.onnx", bundle_folder)
    shutil.copy(tmp_path / "old" / "model.json", bundle_folder)
    with HybridEngine(bundle_folder, **options) as engine:  # what the cache kept is of that file
        np.testing.assert_allclose(engine.predict(pixels).logits, expected, atol=1e-5)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_file_replaced_after_its_check_is_refused(bundle_folder, backend, monkeypatch):
    from hybrid_rt import opening

    def find_then_replace(*arguments, **options):
        model = find_model(*arguments, **options)
        write_tiny_onnx(model.path, model.spec, seed=5)
        return model

    monkeypatch.setattr(opening, "find_model", find_then_replace)
    with pytest.raises(DigestError, match="was replaced while it was being opened"):
        HybridEngine(bundle_folder, backend=backend)


CLOSE_IN_CHILD = """
import os, sys
from hybrid_rt import HybridEngine
engine = HybridEngine(sys.argv[1], backend=sys.argv[2], mode="throughput")
child = os.fork()
if child == 0:
    engine.close()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
engine.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_close_in_a_forked_child_returns(tiny_onnx, backend):
    command = [sys.executable, "-W", "ignore", "-c", CLOSE_IN_CHILD, str(tiny_onnx), backend]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "7"), done.stderr
