"""Heatmaps land where they belong on the image, and the overlay shows them."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from factories.tiny_onnx import tiny_spec
from hybrid_rt import Explanation, HybridEngine, ImageError, ModelFileError, PredictionError
from hybrid_rt.results.explanation import place_heatmap
from hybrid_rt.spec import Preprocess
from hybrid_rt.testing import FakeSession


@pytest.fixture
def engine(bundle_folder):
    with HybridEngine(bundle_folder / "model.onnx", backend="onnxruntime") as engine:
        yield engine


def test_one_and_many(engine, images):
    one = engine.explain(images[0])
    assert isinstance(one, Explanation)
    many = engine.explain(images, batch_size=4)
    assert [e.prediction.source for e in many] == [str(p) for p in images]
    np.testing.assert_allclose(one.heatmap_vit, many[0].heatmap_vit, atol=1e-6)
    for explanation, path in zip(many, images, strict=True):
        with Image.open(path) as image:
            assert explanation.image.size == image.size
        for heatmap in (explanation.heatmap_vit, explanation.heatmap_cnn):
            assert heatmap.shape == explanation.image.size[::-1]
            assert heatmap.dtype == np.float32
            assert heatmap.min() >= 0
            assert 0.9 < heatmap.max() <= 1
        assert explanation.grids["heatmap_vit"].shape == (4, 4)
    np.testing.assert_allclose(
        many[1].prediction.logits, engine.predict(images[1]).logits, atol=1e-5
    )


def test_explain_a_folder_returns_a_list(engine, images):
    many = engine.explain(str(images[0].parent))
    assert [e.prediction.source for e in many] == [str(p) for p in images]
    with pytest.raises(ImageError, match="of type dict"):
        engine.explain({"a": images[0]})


def test_files_are_read_once(engine, images):
    with images[0].open("rb") as file:
        explanation = engine.explain(file)
    assert explanation.prediction.label == engine.predict(images[0]).label


def test_errors(engine, images, tmp_path, tiny_onnx):
    with pytest.raises(ImageError, match=r"no\.png"):
        engine.explain([images[0], tmp_path / "no.png"])
    items = list(engine.stream_explained([images[0], tmp_path / "no.png"]))
    assert isinstance(items[1], PredictionError)
    with (
        HybridEngine(tiny_onnx) as plain,
        pytest.raises(ModelFileError, match="hybrid-export --expl"),
    ):
        plain.explain(images[0])


def test_overlay_and_save(engine, images, tmp_path):
    explanation = engine.explain(images[0])
    sheet = explanation.overlay(max_size=40)
    assert sheet.mode == "RGB"
    assert sheet.width == 3 * 40 + 2 * 6
    path = explanation.save(tmp_path / "deep" / "a.png")
    with Image.open(path) as saved:
        assert saved.size == explanation.overlay().size
    assert Image.open(io.BytesIO(explanation._repr_png_())).format == "PNG"


def test_overlay_is_hot_where_the_heat_is():
    spec = tiny_spec(explain=True)
    engine = HybridEngine.from_session(FakeSession(spec, explain=True), spec)
    image = np.zeros((70, 70, 3), np.uint8)
    image[10:20, 50:60] = 255  # FakeSession's ViT map is brightness
    explanation = engine.explain(image)
    row, column = np.unravel_index(explanation.heatmap_vit.argmax(), (70, 70))
    assert 8 <= row < 22
    assert 48 <= column < 62
    assert explanation.heatmap_cnn[65, 5] > 0.9
    panel = np.asarray(explanation.overlay(max_size=70)).astype(int)
    vit = panel[22:, 76:146]
    assert vit[15, 55].sum() > vit[60, 10].sum() + 100


GRID = np.zeros((4, 4), np.float32)
GRID[0, 0] = 1.0


@pytest.mark.parametrize("box", [(0, 0, 80, 40), (20, 10, 60, 30)])
@pytest.mark.parametrize("resize", ["stretch", "fit", "fill"])
def test_placing_inverts_the_resize(resize, box):
    """A bright square of the image, as the model sees it, comes back to its own place."""
    from hybrid_rt.images import prepare

    preprocess = Preprocess(height=32, width=32, resize=resize)
    left, top, right, bottom = box
    image = np.zeros((40, 80, 3), np.uint8)
    y, x = (top + bottom) // 2, (left + right) // 2 + 4
    image[y - 3 : y + 3, x - 3 : x + 3] = 255
    cropped = Image.fromarray(image[top:bottom, left:right])
    seen = prepare(cropped, preprocess).mean(axis=2).astype(np.float32) / 255  # [32, 32]
    heat = place_heatmap(seen, (80, 40), box, preprocess)
    assert heat.shape == (40, 80)
    mass = heat.sum()
    rows, columns = np.mgrid[:40, :80] + 0.5
    centre = ((heat * rows).sum() / mass, (heat * columns).sum() / mass)
    assert centre == pytest.approx((y, x), abs=0.5)
    outside = np.ones((40, 80), bool)
    outside[top:bottom, left:right] = False
    assert heat[outside].sum() == 0


def test_fill_leaves_the_margins_cold():
    heat = place_heatmap(
        np.ones((4, 4), np.float32),
        (80, 40),
        (0, 0, 80, 40),
        Preprocess(height=32, width=32, resize="fill"),
    )
    assert heat[:, :20].sum() == 0
    assert heat[:, 60:].sum() == 0
    assert heat[:, 20:60].min() == 1


@pytest.mark.parametrize("resize", ["stretch", "fit", "fill"])
def test_a_crop_may_vanish(resize):
    preprocess = Preprocess(height=32, width=32, resize=resize)
    for box in ((3, 3, 3, 9), (0, 0, 1, 9), (0, 5, 9, 6)):
        heat = place_heatmap(np.ones((4, 4), np.float32), (9, 9), box, preprocess)
        assert heat.shape == (9, 9)


def test_a_map_without_heat_stays_cold(images):
    spec = tiny_spec(explain=True)

    class Cold(FakeSession):
        def run(self, images):
            outputs = super().run(images)
            outputs["heatmap_vit"] = np.full_like(outputs["heatmap_vit"], -1)
            outputs["heatmap_cnn"] = np.full_like(outputs["heatmap_cnn"], np.nan)
            return outputs

    engine = HybridEngine.from_session(Cold(spec, explain=True), spec)
    explanation = engine.explain(images[0])
    assert explanation.heatmap_vit.max() == 0
    assert explanation.heatmap_cnn.max() == 0
    explanation.overlay()


def test_crop_is_undone():
    spec = tiny_spec(explain=True)
    spec = spec.replace(preprocess=Preprocess(height=32, width=32, crop="breast"))
    engine = HybridEngine.from_session(FakeSession(spec, explain=True), spec)
    mammogram = np.zeros((120, 100), np.uint8)
    mammogram[20:110, 0:60] = 120  # a breast at the left edge
    mammogram[50:60, 20:30] = 250
    explanation = engine.explain(mammogram)
    assert explanation.heatmap_vit.shape == (120, 100)
    row, column = np.unravel_index(explanation.heatmap_vit.argmax(), (120, 100))
    assert 44 <= row < 66
    assert 14 <= column < 36
    assert explanation.heatmap_cnn[:, 90:].sum() == 0


def test_an_abstained_prediction_has_a_caption_too(engine, images):
    explanation = engine.explain(images[0])
    abstained = replace(explanation.prediction, label=None, probability=None)
    assert replace(explanation, prediction=abstained).overlay(max_size=40).width > 40


def test_a_branch_without_a_say_is_faint(engine, images):
    explanation = engine.explain(images[0])
    loud = np.ones((4, 4), np.float32)
    grids = {"heatmap_vit": loud * 1e-4, "heatmap_cnn": loud}
    explanation = replace(explanation, grids=grids)
    assert explanation.strength == pytest.approx({"vit": 16e-4, "cnn": 16})
    sheet = np.asarray(explanation.overlay(max_size=40), np.float32)
    plain, vit, cnn = sheet[:, :40], sheet[:, 46:86], sheet[:, 92:]
    bottom = slice(-15, None)  # below the captions
    assert np.abs(vit[bottom] - plain[bottom]).mean() < 3
    assert np.abs(cnn[bottom] - plain[bottom]).mean() > 30
    silent = replace(explanation, grids={name: 0 * grid for name, grid in grids.items()})
    assert silent.overlay(max_size=40).size == explanation.overlay(max_size=40).size
