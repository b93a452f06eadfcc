"""What the demo shows of a prediction: an abstention has no class and no probability."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from factories.parity_reports import parity_report
from factories.tiny_onnx import tiny_spec, write_tiny_onnx
from hybrid_export import demo
from hybrid_rt import HybridEngine, Prediction
from hybrid_rt.bundle.manifest import Bundle, describe_file
from hybrid_rt.uncertainty.decision import Rules
from hybrid_rt.uncertainty.ood import EXTRAS_KEY, OOD_NAME, OodDetector

SIZE = 32
SPEC = tiny_spec(classes=("no cancer", "cancer"))
GREY = Image.new("L", (60, 100), 128)


def predicted(cancer, ood_score):
    """A prediction of that probability and score, the model being asked to abstain."""
    probabilities = np.array([1 - cancer, cancer], np.float32)
    row = {
        "probabilities": probabilities,
        "logits": np.log(probabilities),
        "ood_score": np.float32(ood_score),
    }
    return Prediction.from_outputs(SPEC, row, "a.dcm", rules=Rules(abstain=True))


def sheet_of(*predictions):
    names = [f"benign case, view {i}" for i in range(len(predictions))]
    return demo.contact_sheet(names, [GREY] * len(predictions), predictions, demo.PHANTOM_CAVEAT)


def text_below(sheet, place):
    """A card of the first row, below its image, as an array."""
    left = demo.GAP + place * (demo.CARD_WIDTH + demo.GAP)
    top = demo.HEAD + demo.IMAGE_HEIGHT
    box = (left, top, left + demo.CARD_WIDTH, top + demo.TEXT_HEIGHT)
    return np.asarray(sheet.crop(box))


def has_colour(area, colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((area == rgb).all(-1).sum() > 50)


def test_table_shows_scores_and_abstentions():
    text = demo.table(["RCC", "left MLO"], [predicted(0.876, 0.447), predicted(0.981, 12.345)])
    assert text.splitlines() == [
        "mammogram  prediction                     OOD score",
        "RCC        cancer 88%                          0.45",
        "left MLO   abstains: out-of-distribution      12.35",
    ]


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ((0.5, 1.2, 3.0), "on 2 of 3. It takes the other 1 for images like its training data."),
        ((1.2, 3.0), "on 2 of 2."),
        ((1.0, 0.5), "on 0 of 2. It takes the other 2 for images like its training data."),
    ],
)
def test_abstentions_count_those_above_one(scores, text):
    predictions = [predicted(0.9, score) for score in scores]
    assert demo.abstentions(predictions) == f"Above an OOD score of 1 it abstains: {text}"


def test_an_abstention_shows_no_class_or_probability():
    """The same card for any of them; other cards differ."""
    predictions = [(0.98, 1.16), (0.02, 1.16), (0.98, 0.45), (0.02, 0.45)]
    sheet = sheet_of(*(predicted(*prediction) for prediction in predictions))
    cards = [text_below(sheet, i) for i in range(4)]
    names = slice(40, None)  # below the name of the view
    np.testing.assert_array_equal(cards[0][names], cards[1][names])
    assert (cards[2][names] != cards[3][names]).any()
    assert [has_colour(card, demo.WARNING) for card in cards] == [True, True, False, False]


def test_a_meter_is_as_long_as_the_score():
    sheet = sheet_of(predicted(0.9, 4.0), predicted(0.9, 1.0), predicted(0.9, 2.0))
    lengths = []
    for i, colour in enumerate((demo.WARNING, demo.FILL, demo.WARNING)):
        row = text_below(sheet, i)[demo.TEXT_HEIGHT - 20]  # through the meter
        rgb = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
        lengths.append(np.flatnonzero((row == rgb).all(-1)).max() - 13)
    np.testing.assert_allclose(np.array(lengths) / lengths[0], [1, 0.25, 0.5], atol=0.01)


def test_the_sheet_grows_by_rows_and_holds_its_text():
    few, many = (sheet_of(*[predicted(0.9, 0.5)] * n) for n in (4, 5))
    assert few.width == many.width == 1400
    assert many.height - few.height == demo.IMAGE_HEIGHT + demo.TEXT_HEIGHT + demo.GAP
    page = np.array([int(demo.PAGE[i : i + 2], 16) for i in (1, 3, 5)])
    assert (np.asarray(few)[:, -demo.GAP + 2 :] == page).all(), "no line reaches the edge"


def test_the_credit_is_on_the_sheet():
    foot = np.asarray(sheet_of(predicted(0.9, 0.5)))[-demo.FOOT :]
    assert has_colour(foot, demo.MUTED)
    assert "CBIS-DDSM, CC BY 3.0" in demo.CREDIT


@pytest.fixture
def demo_bundle(tmp_path):
    """A bundle that knows dim noise, so that a white image is out-of-distribution."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = write_tiny_onnx(folder / "model.onnx", SPEC)
    dim = np.random.default_rng(0).integers(0, 90, (40, SIZE, SIZE, 3), np.uint8)
    with HybridEngine(path, backend="onnxruntime") as engine:
        features = engine.features(dim)
    fitted = OodDetector(
        mean=features.mean(0), scale=np.full(16, features.std(), np.float32),
        basis=np.empty((0, 16), np.float32), variances=np.empty(0, np.float32),
        rest=np.ones(1, np.float32), reference=np.full(1, 3, np.float32),
    )  # fmt: skip
    spec = SPEC.replace(extras={EXTRAS_KEY: fitted.save(folder / OOD_NAME).to_dict()})
    write_tiny_onnx(path, spec)
    entry = describe_file(path, precision="fp32", parity_report=parity_report())
    Bundle(spec=spec, files={"model.onnx": entry}).save(folder)
    Image.fromarray(dim[0]).save(tmp_path / "dim.png")
    Image.new("RGB", (SIZE, SIZE), "white").save(tmp_path / "white.png")
    return folder


def test_the_command_and_python_both_abstain(demo_bundle, tmp_path, capsys):
    files = {name: tmp_path / f"{name}.png" for name in ("dim", "white")}
    demo.show_predictions(demo_bundle, files, tmp_path, demo.PHANTOM_CAVEAT)
    out = capsys.readouterr().out
    assert " --abstain " in next(line for line in out.splitlines() if line.startswith("$ "))
    assert "abstains: out-of-distribution" in next(
        line for line in out.splitlines() if line.startswith("white ")
    )
    assert "abstains: on 1 of 2." in out
    assert demo.CREDIT in out
    dim, white = csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines())
    assert dim["label"] in SPEC.classes
    assert white["label"] == white["probability"] == ""
    with Image.open(tmp_path / "predictions.png") as sheet:
        assert sheet.width == 1400
