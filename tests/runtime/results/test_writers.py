"""Predictions as Python values and as tables."""

import csv
import io
import json

import numpy as np
import pytest

from factories.tiny_onnx import tiny_spec
from hybrid_rt import HybridEngine, ImageError, PredictionError
from hybrid_rt.results.writers import csv_lines, json_lines, jsonl_lines, text_lines
from hybrid_rt.spec import OperatingPoint
from hybrid_rt.testing import FakeSession

SPEC = tiny_spec(
    classes=("a", "b,c", '<d"'),
    operating_point=OperatingPoint(positive="a", threshold=0.5, criterion="sensitivity>=0.9"),
)


@pytest.fixture
def predictions(images):
    engine = HybridEngine.from_session(FakeSession(SPEC), SPEC)
    return engine.predict(images)


@pytest.fixture
def mixed_results(predictions):
    error = PredictionError(source="bad, file.png", error=ImageError("bad, file.png: empty"))
    return [predictions[0], error, predictions[1]]


def test_top_and_decision(predictions):
    prediction = predictions[0]
    assert len(prediction.top(2)) == 2
    assert prediction.top(99) == sorted(prediction.probabilities.items(), key=lambda i: -i[1])
    assert prediction.top(0) == []
    assert bool(prediction.decision) == (prediction.probabilities["a"] >= 0.5)
    assert str(prediction.decision) in ("a", "not a")


def test_sequence(predictions):
    assert len(predictions) == 6
    assert predictions[-1].source.endswith("p5.png")
    assert [p.source for p in predictions[1:3]] == [p.source for p in list(predictions)[1:3]]
    assert predictions.probabilities.shape == predictions.logits.shape == (6, 3)
    assert predictions.labels == [p.label for p in predictions]
    assert "1 more" in repr(predictions)


def test_csv(predictions, mixed_results, tmp_path):
    text = predictions.to_csv(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes().decode() == text
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == [
        "source", "label", "probability", "p_a", "p_b,c", 'p_<d"', "decision"
    ]  # fmt: skip
    assert float(rows[2]["p_b,c"]) == predictions[2].probabilities["b,c"]
    for spec in (None, SPEC):
        rows = list(
            csv.DictReader(io.StringIO("".join(csv_lines(mixed_results, spec)), newline=""))
        )
        assert [row["source"] for row in rows] == [item.source for item in mixed_results]
        assert rows[1]["error"] == "bad, file.png: empty"
        assert rows[0]["error"] == ""
    assert "".join(csv_lines([], SPEC)).startswith("source,label")
    assert "".join(csv_lines([])) == "source\r\n"


def test_json(predictions, mixed_results, tmp_path):
    text = predictions.to_jsonl(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == text
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows == [p.to_dict() for p in predictions]
    assert rows[0]["decision"]["criterion"] == "sensitivity>=0.9"
    assert json.loads("".join(json_lines(mixed_results))) == [
        item.to_dict() for item in mixed_results
    ]
    assert json.loads("".join(json_lines([]))) == []
    assert json.loads(list(jsonl_lines(mixed_results))[1])["error"] == "bad, file.png: empty"


def test_text_table(mixed_results):
    lines = list(text_lines(mixed_results))
    assert lines[0].split()[:3] == ["image", "label", "probability"]
    assert set(lines[1]) <= {"-", " ", "\n"}
    assert len(lines) == 5
    assert lines[3].rstrip().endswith("empty")
    many = tiny_spec(classes=tuple(f"class {i}" for i in range(9)))
    engine = HybridEngine.from_session(FakeSession(many), many)
    assert "top 3" in next(text_lines([engine.predict(np.zeros((9, 9, 3), np.uint8))]))


def test_pandas(predictions):
    frame = predictions.to_pandas()
    assert list(frame["source"]) == [p.source for p in predictions]
    np.testing.assert_array_equal(
        frame["p_a"].to_numpy(np.float32), predictions.probabilities[:, 0]
    )


def test_notebook(predictions, images, tmp_path):
    html = predictions[0]._repr_html_()
    assert "data:image/png;base64," in html
    assert "&lt;d&quot;" in html
    assert '<d"' not in html
    assert "<table>" in predictions._repr_html_()
    engine = HybridEngine.from_session(FakeSession(SPEC), SPEC)
    with images[0].open("rb") as file:
        assert "base64" not in engine.predict(file)._repr_html_()
    gone = tmp_path / "gone.png"
    gone.write_bytes(images[0].read_bytes())
    prediction = engine.predict(gone)
    gone.unlink()
    assert "base64" not in prediction._repr_html_()
    streamed = next(engine.stream([images[0].read_bytes()]))
    assert streamed.load_image is None
    assert next(engine.stream(images)).load_image is not None
