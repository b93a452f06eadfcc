"""Prediction sets: ranks, coverage by class, too few images, nonsense in the spec."""

import json
from fractions import Fraction

import numpy as np
import pytest

from factories.tiny_onnx import tiny_spec
from hybrid_rt import HybridEngine, ModelFileError, SpecError, UsageError
from hybrid_rt.results.writers import csv_lines
from hybrid_rt.testing import FakeSession
from hybrid_rt.uncertainty.conformal import Conformal, RankTable

CLASSES = ("no cancer", "cancer")


def conformal(own=(0.9, 0.8, 0.7, 0.6, 0.5), other=(0.9, 0.7, 0.4, 0.2)):
    merged = tuple(sorted((*own, *other), reverse=True))
    return Conformal(
        labels=CLASSES,
        images=RankTable(count=len(merged), probabilities=merged),
        classes={
            CLASSES[0]: RankTable(count=len(own), probabilities=tuple(own)),
            CLASSES[1]: RankTable(count=len(other), probabilities=tuple(other)),
        },
        groups=3,
    )


def spec_with(data):
    return tiny_spec(classes=CLASSES).replace(extras={"conformal": data})


@pytest.mark.parametrize("count", [1, 4, 9, 19, 100])
def test_ranks_are_the_finite_sample_ones(count):
    table = RankTable(count=count, probabilities=tuple(1 - i / 200 for i in range(count)))
    for percent in range(1, 100):
        exact = Fraction(percent, 100) * (count + 1)
        rank = -(-exact.numerator // exact.denominator)
        got = table.threshold(percent / 100)
        assert got == (None if rank > count else table.probabilities[rank - 1]), percent


def test_rank_left_out_takes_the_next_one():
    full = RankTable(count=6, probabilities=(0.9, 0.8, 0.7, 0.6, 0.5, 0.4))
    few = RankTable(count=6, probabilities=(0.8, 0.5, 0.4), ranks=(2, 5, 6))
    for coverage in np.linspace(0.01, 0.99, 99):
        exact, coarse = full.threshold(coverage), few.threshold(coverage)
        assert (exact is None) == (coarse is None)
        assert exact is None or coarse <= exact


def test_sets_by_class_and_by_image():
    by_class = conformal().rule(0.6)
    assert by_class.thresholds == {"no cancer": 0.6, "cancer": 0.4}
    assert by_class.labels({"no cancer": 0.7, "cancer": 0.3}) == ("no cancer",)
    assert by_class.labels({"no cancer": 0.45, "cancer": 0.55}) == ("cancer",)
    assert by_class.labels({"no cancer": 0.6, "cancer": 0.4}) == ("no cancer", "cancer")
    by_image = conformal().rule(0.6, "image")
    assert set(by_image.thresholds.values()) == {0.6}
    assert by_image.labels({"no cancer": 0.55, "cancer": 0.45}) == ("no cancer",)  # never empty
    assert not by_class.note


def test_coverage_beyond_the_images_holds_every_label():
    rule = conformal().rule(0.82)  # needs 5 images: 5 of no cancer, 4 of cancer
    assert rule.short == ("cancer",)
    assert rule.labels({"no cancer": 1.0, "cancer": 0.0}) == CLASSES
    assert "cancer is in every set: a coverage of 0.82 needs 5 calibration images" in rule.note
    everything = conformal().rule(0.99, "image")
    assert everything.labels({"no cancer": 1.0, "cancer": 0.0}) == CLASSES
    assert "all labels are in every set" in everything.note


def test_invalid_options():
    for coverage in (0, 1, -0.1, 1.5, float("nan"), True, "0.9"):
        with pytest.raises(UsageError, match=r"coverage is .*such as 0\.9"):
            conformal().rule(coverage)
    with pytest.raises(UsageError, match="coverage_by is 'patient'; expected 'class' or"):
        conformal().rule(0.9, "patient")
    with pytest.raises(ModelFileError, match=r"no calibration data.*train it again"):
        Conformal.of(tiny_spec())
    engine = HybridEngine.from_session(FakeSession(tiny_spec()), tiny_spec())
    with pytest.raises(ModelFileError, match="no calibration data"):
        engine.predict([], coverage=0.9)


def test_json_and_back():
    data = json.loads(json.dumps(conformal().to_dict()))
    assert Conformal.of(spec_with(data)) == conformal()
    spec = spec_with(data)
    assert type(spec).from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("groups"), "expected an object with method"),
        (lambda d: d.update(more=1), "expected an object with method"),
        (lambda d: d.update(method="aps"), "method is 'aps'"),
        (lambda d: d.update(groups=True), "groups is True"),
        (lambda d: d.update(groups=-1), "groups is -1"),
        (lambda d: d.update(images=[1]), "extras.conformal.images is list"),
        (lambda d: d["images"].update(count=3), "expected one for each of its 3 ranks"),
        (lambda d: d["images"]["probabilities"].reverse(), "falling numbers"),
        (lambda d: d["images"]["probabilities"].__setitem__(0, 2), "falling numbers"),
        (lambda d: d["images"].update(ranks=[1, 2, 3, 4, 5, 6, 7, 8, 8]), "rising ones up to 9"),
        (lambda d: d["classes"].pop("cancer"), "expected a table for each of"),
    ],
)
def test_nonsense_in_the_spec(change, message):
    data = json.loads(json.dumps(conformal().to_dict()))
    change(data)
    with pytest.raises(SpecError, match=message):
        Conformal.of(spec_with(data))


def test_class_without_images_is_in_every_set():
    data = json.loads(json.dumps(conformal().to_dict()))
    data["classes"]["cancer"] = {"count": 0, "probabilities": [], "ranks": None}
    rule = Conformal.of(spec_with(data)).rule(0.5)
    assert rule.short == ("cancer",)
    assert rule.labels({"no cancer": 1.0, "cancer": 0.0}) == CLASSES


def test_predictions_carry_their_sets():
    spec = spec_with(conformal().to_dict())
    engine = HybridEngine.from_session(FakeSession(spec), spec)
    images = list(np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8))
    plain = engine.predict(images)
    asked = engine.predict(images, coverage=0.6)
    rule = conformal().rule(0.6)
    for before, prediction in zip(plain, asked, strict=True):
        assert before.prediction_set is None
        assert "prediction_set" not in before.to_dict()
        assert prediction.prediction_set == rule.labels(prediction.probabilities)
        assert prediction.to_dict()["prediction_set"] == list(prediction.prediction_set)
        assert prediction.to_dict()["coverage"] == {"wanted": 0.6, "by": "class", "note": ""}
        assert prediction.probabilities == before.probabilities
    streamed = list(engine.stream(images, coverage=0.6))
    assert [p.prediction_set for p in streamed] == [p.prediction_set for p in asked]
    rows = asked.to_csv().splitlines()
    assert rows[0] == "source,label,probability,p_no cancer,p_cancer,prediction_set"
    assert next(csv_lines(asked, spec, optional=["prediction_set"])).splitlines()[0] == (
        rows[0] + ",error"
    )
