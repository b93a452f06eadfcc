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
def answers(pictures):
    engine = HybridEngine.from_session(FakeSession(SPEC), SPEC)
    return engine.predict(pictures)


@pytest.fixture
def mixed(answers):
    error = PredictionError(source="bad, file.png", error=ImageError("bad, file.png: empty"))
    return [answers[0], error, answers[1]]


def test_top_and_decision(answers):
    answer = answers[0]
    assert len(answer.top(2)) == 2
    assert answer.top(99) == sorted(answer.probabilities.items(), key=lambda i: -i[1])
    assert answer.top(0) == []
    assert bool(answer.decision) == (answer.probabilities["a"] >= 0.5)
    assert str(answer.decision) in ("a", "not a")


def test_sequence(answers):
    assert len(answers) == 6
    assert answers[-1].source.endswith("p5.png")
    assert [p.source for p in answers[1:3]] == [p.source for p in list(answers)[1:3]]
    assert answers.probabilities.shape == answers.logits.shape == (6, 3)
    assert answers.labels == [p.label for p in answers]
    assert "1 more" in repr(answers)


def test_csv(answers, mixed, tmp_path):
    text = answers.to_csv(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes().decode() == text
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == [
        "source", "label", "probability", "p_a", "p_b,c", 'p_<d"', "decision"
    ]  # fmt: skip
    assert float(rows[2]["p_b,c"]) == answers[2].probabilities["b,c"]
    for spec in (None, SPEC):
        rows = list(csv.DictReader(io.StringIO("".join(csv_lines(mixed, spec)), newline="")))
        assert [row["source"] for row in rows] == [item.source for item in mixed]
        assert rows[1]["error"] == "bad, file.png: empty"
        assert rows[0]["error"] == ""
    assert "".join(csv_lines([], SPEC)).startswith("source,label")
    assert "".join(csv_lines([])) == "source\r\n"


def test_json(answers, mixed, tmp_path):
    text = answers.to_jsonl(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == text
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows == [p.to_dict() for p in answers]
    assert rows[0]["decision"]["criterion"] == "sensitivity>=0.9"
    assert json.loads("".join(json_lines(mixed))) == [item.to_dict() for item in mixed]
    assert json.loads("".join(json_lines([]))) == []
    assert json.loads(list(jsonl_lines(mixed))[1])["error"] == "bad, file.png: empty"


def test_text_table(mixed):
    lines = list(text_lines(mixed))
    assert lines[0].split()[:3] == ["image", "label", "probability"]
    assert set(lines[1]) <= {"-", " ", "\n"}
    assert len(lines) == 5
    assert lines[3].rstrip().endswith("empty")
    many = tiny_spec(classes=tuple(f"class {i}" for i in range(9)))
    engine = HybridEngine.from_session(FakeSession(many), many)
    assert "top 3" in next(text_lines([engine.predict(np.zeros((9, 9, 3), np.uint8))]))


def test_pandas(answers):
    frame = answers.to_pandas()
    assert list(frame["source"]) == [p.source for p in answers]
    np.testing.assert_array_equal(frame["p_a"].to_numpy(np.float32), answers.probabilities[:, 0])


def test_notebook(answers, pictures, tmp_path):
    html = answers[0]._repr_html_()
    assert "data:image/png;base64," in html
    assert "&lt;d&quot;" in html
    assert '<d"' not in html
    assert "<table>" in answers._repr_html_()
    engine = HybridEngine.from_session(FakeSession(SPEC), SPEC)
    with pictures[0].open("rb") as file:
        assert "base64" not in engine.predict(file)._repr_html_()
    gone = tmp_path / "gone.png"
    gone.write_bytes(pictures[0].read_bytes())
    answer = engine.predict(gone)
    gone.unlink()
    assert "base64" not in answer._repr_html_()
    streamed = next(engine.stream([pictures[0].read_bytes()]))
    assert streamed.picture is None
    assert next(engine.stream(pictures)).picture is not None
