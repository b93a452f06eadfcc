"""Thresholds of the caller's own, and the options of the command line."""

import csv
import json

import pytest

from factories.tiny_onnx import tiny_spec, write_tiny_onnx
from hybrid_rt import HybridEngine, ModelFileError, UsageError
from hybrid_rt.cli import main
from hybrid_rt.spec import OperatingPoint
from hybrid_rt.testing import FakeSession
from hybrid_rt.uncertainty.conformal import Conformal, RankTable
from hybrid_rt.uncertainty.decision import make_rules, parse_threshold

POINT = OperatingPoint(positive="benign", threshold=0.5, criterion="sensitivity=0.9")
THREE = ("a", "b", "c")


def test_a_threshold_replaces_the_specs_own():
    spec = tiny_spec(operating_point=POINT)
    assert make_rules(spec).point == POINT
    given = make_rules(spec, threshold=0.2).point
    assert (given.positive, given.threshold, given.criterion) == ("benign", 0.2, "given")
    assert make_rules(tiny_spec(), threshold=1).point.positive == "malignant"  # the second of two
    other = OperatingPoint(positive="malignant", threshold=0.9, criterion="mine")
    assert make_rules(spec, threshold=other).point == other
    assert make_rules(tiny_spec()).point is None


@pytest.mark.parametrize(
    ("spec", "threshold", "message"),
    [
        (tiny_spec(), 1.2, "threshold is 1.2; expected a probability, 0 to 1"),
        (tiny_spec(), float("nan"), "expected a probability"),
        (tiny_spec(), True, "threshold is True"),
        (tiny_spec(), "0.3", "threshold is '0.3'"),
        (tiny_spec(classes=THREE), 0.3, "3 classes needs the class.*CLASS=0.3.*a, b, c"),
        (tiny_spec(), parse_threshold("cancer=0.3"), "on 'cancer'; the classes are benign"),
    ],
)
def test_thresholds_that_cannot_be(spec, threshold, message):
    engine = HybridEngine.from_session(FakeSession(spec), spec)
    with pytest.raises(UsageError, match=message):
        engine.predict([], threshold=threshold)


def test_thresholds_of_the_command_line():
    assert parse_threshold("0.25") == 0.25
    point = parse_threshold("a=b=0.5")
    assert (point.positive, point.threshold) == ("a=b", 0.5)
    for text in ("", "high", "1.5", "cancer=", "nan", "=0.5x"):
        with pytest.raises(UsageError, match=r"expected a probability such as 0\.3 or CLASS=0\.3"):
            parse_threshold(text)


def test_decisions_follow_the_threshold(images):
    spec = tiny_spec()
    engine = HybridEngine.from_session(FakeSession(spec), spec)
    assert engine.predict(images[0]).decision is None
    for prediction in engine.predict(images):
        value = prediction.probabilities["malignant"]
        at, above = (
            engine.predict([prediction.source], threshold=value)[0],
            engine.predict(prediction.source, threshold=min(1.0, value + 1e-6)),
        )
        assert at.decision
        assert not above.decision
        assert at.label == above.label == prediction.label


def test_abstaining_needs_a_model_that_knows(tiny_onnx, images):
    spec = tiny_spec()
    engine = HybridEngine.from_session(FakeSession(spec), spec)
    with pytest.raises(
        ModelFileError, match=r"has no out-of-distribution detector.*train it again"
    ):
        engine.predict(images[0], abstain=True)
    with HybridEngine(tiny_onnx) as opened, pytest.raises(ModelFileError, match="cannot abstain"):
        opened.stream(images, abstain=True)


@pytest.fixture
def calibrated(tmp_path):
    values = tuple(1 - i / 20 for i in range(12))
    table = RankTable(count=12, probabilities=values)
    conformal = Conformal(
        labels=("benign", "malignant"), images=table,
        classes={"benign": table, "malignant": RankTable(count=2, probabilities=(0.9, 0.8))},
    )  # fmt: skip
    spec = tiny_spec(extras={"conformal": conformal.to_dict()})
    return write_tiny_onnx(tmp_path / "model.onnx", spec)


def test_the_command(calibrated, images, tmp_path, capsys):
    output = tmp_path / "a.csv"
    asked = ["--coverage", "0.75", "--threshold", "benign=0.01"]
    assert main([str(calibrated), *map(str, images), *asked, "--format", "csv",
                 "--output", str(output)]) == 0  # fmt: skip
    err = capsys.readouterr().err
    assert err.startswith("hybrid-predict: malignant is in every set: a coverage of 0.75 needs 3 ")
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all("malignant" in row["prediction_set"].split(" | ") for row in rows)
    assert {row["decision"] for row in rows} <= {"benign", "not benign"}
    assert list(rows[0])[-3:] == ["decision", "prediction_set", "error"]
    assert main([str(calibrated), str(images[0]), "--coverage", "0.75", "--coverage-by",
                 "image", "--format", "jsonl"]) == 0  # fmt: skip
    out, err = capsys.readouterr()
    assert json.loads(out)["coverage"] == {"wanted": 0.75, "by": "image", "note": ""}
    assert err == ""
    assert main([str(calibrated), str(images[0]), "--coverage", "0.75"]) == 0
    assert "{" in capsys.readouterr().out.splitlines()[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coverage", "1"], "coverage is 1.0; expected above 0 and below 1"),
        (["--threshold", "lots"], "threshold 'lots'; expected a probability"),
        (["--abstain"], "has no out-of-distribution detector"),
    ],
)
def test_options_that_the_command_refuses(calibrated, images, capsys, options, message):
    assert main([str(calibrated), str(images[0]), *options]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
