"""The pointing game and the deletion curves, on heatmaps whose place is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from hybrid_export.cli import main as export
from hybrid_export.localization.__main__ import main
from hybrid_export.localization.measure import STEPS, Curves, curves, steps
from hybrid_export.localization.page import outline, overlay
from hybrid_export.localization.pointing import dilated, hottest, point_at, wilson
from hybrid_rt.results.explanation import Explanation
from hybrid_rt.results.prediction import Prediction
from hybrid_rt.spec import Preprocess
from hybrid_train.phantom import generate

PREPROCESS = Preprocess(height=64, width=64)


def explanation(vit, cnn, image=None) -> Explanation:
    image = image or Image.new("L", (64, 64), 100)
    prediction = Prediction(
        label="b",
        probability=0.9,
        probabilities={"a": 0.1, "b": 0.9},
        logits=np.array([0.0, 2.2], np.float32),
        source="made",
    )
    grids = {"heatmap_vit": np.float32(vit), "heatmap_cnn": np.float32(cnn)}
    return Explanation(
        prediction=prediction, image=image, grids=grids, box=(0, 0, 64, 64), preprocess=PREPROCESS
    )


def spot(row: int, column: int) -> np.ndarray:
    grid = np.zeros((8, 8), np.float32)
    grid[row, column] = 1
    return grid


def mask() -> np.ndarray:
    inside = np.zeros((64, 64), bool)
    inside[8:16, 40:48] = True  # cell (1, 5) of 8 x 8
    return inside


def test_pointing():
    rows = {p.name: p for p in point_at([(explanation(spot(1, 5), spot(6, 1)), mask())])}
    assert (rows["vit"].hits, rows["cnn"].hits) == (1, 0)
    assert rows["vit"].energy > 0.3 > rows["cnn"].energy == 0
    assert rows["centre of the image"].hits == 0
    share = dilated(mask(), round(15 / 512 * 64)).mean()
    assert rows["random point of the breast"].hits == pytest.approx(share)
    assert rows["random point of the breast"].energy == pytest.approx(1 / 64)


def test_a_near_miss_is_a_hit_within_the_tolerance():
    grown = dilated(mask(), 2)
    assert grown[8, 38]
    assert not grown[8, 37]
    assert hottest(np.float32([[0, 2], [1, 0]])) == (0, 1)
    assert hottest(np.ones((3, 3), np.float32)) == (1, 1), "a flat map points at the middle"


def test_wilson():
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)


def test_steps_go_from_one_image_to_the_other():
    start, end = np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 3), 9, np.uint8)
    stack = steps(start, end, np.arange(20)[::-1])
    assert (stack[0] == 0).all()
    assert (stack[-1] == 9).all()
    assert (stack[1] == 9).any(-1).sum() == 1
    assert (stack[1][-1, -1] == 9).all(), "the first of the order goes first"


class Bright:
    """Predicts by the mean brightness of the lesion's place alone."""

    class spec:  # noqa: N801
        preprocess = PREPROCESS
        classes = ("a", "b")

    @staticmethod
    def run(images):
        value = images[:, 8:16, 40:48].mean((1, 2, 3)) / 255
        return {"probabilities": np.stack([1 - value, value], 1).astype(np.float32)}


def test_deleting_where_the_prediction_comes_from_hurts_most():
    image = np.zeros((64, 64), np.uint8)
    image[mask()] = 255
    where = explanation(spot(1, 5), spot(6, 1), Image.fromarray(image))
    made = {c.name: c for c in curves(Bright(), [where], np.random.default_rng(0))}
    assert len(made["vit"].deletion) == STEPS + 1
    assert made["vit"].deletion[0] == pytest.approx(1)
    assert made["vit"].deletion_area < made["cnn"].deletion_area - 0.3
    assert made["vit"].insertion_area > made["cnn"].insertion_area + 0.3
    assert made["vit"].deletion_area < made["random order"].deletion_area


def test_area_under_a_line():
    line = [1.0, 0.5, 0.0]
    curve = Curves(name="x", deletion=line, insertion=line[::-1])
    assert curve.deletion_area == curve.insertion_area == 0.5


def test_the_overlay_outlines_the_lesion_in_each_panel():
    sheet = overlay(explanation(spot(1, 5), spot(6, 1)), mask())
    green = (np.asarray(sheet) == (0, 255, 200)).all(-1)
    assert green.sum() == 3 * outline(mask()).sum() == 3 * 32


def test_phantoms_have_their_lesions():
    rows = [r for r in generate(3, seed=0, size=128, with_masks=True) if r["mask"].any()]
    assert rows
    assert all(row["cancer"] for row in rows)


@pytest.fixture(scope="module")
def explained_bundle(checkpoint, image_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("explained")
    arguments = [str(checkpoint), "--output", str(output), "--verify", str(image_folder)]
    assert export([*arguments, "--explain", "--no-tensorrt"]) == 0
    return output


def test_command(explained_bundle, tmp_path, capsys):
    page = tmp_path / "page.html"
    arguments = [
        str(explained_bundle),
        "--output",
        str(page),
        "--patients",
        "4",
        "--curve-images",
        "1",
    ]
    codes = {main([*arguments, "--positive", name]) for name in ("benign", "malignant", "normal")}
    assert 0 in codes, "an untrained model calls the phantoms something"
    text = page.read_text()
    assert "Pointing game" in text
    assert "<img" in text
    assert "http" not in text.replace("http://www.w3.org", ""), "it loads nothing from elsewhere"
    result = json.loads(page.with_suffix(".json").read_text())
    assert result["found"] <= result["lesions"]
    assert "points at the lesion" in capsys.readouterr().out


def test_wrong_usage(explained_bundle, tmp_path, capsys):
    assert main([str(explained_bundle), "--patients", "0"]) == 2
    assert (
        main([str(explained_bundle), "--positive", "nothing", "--output", str(tmp_path / "x")]) == 2
    )
    assert "expected one of benign, malignant, normal" in capsys.readouterr().err
    assert main([str(tmp_path / "no.onnx")]) == 1
    assert not (tmp_path / "x").exists()
