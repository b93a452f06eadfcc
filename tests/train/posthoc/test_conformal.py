"""Calibration data: rounding, compact tables, and coverage on images not used for them."""

import json

import numpy as np
import pytest

from hybrid_rt.spec import Branch, Head, ModelSpec, Preprocess
from hybrid_rt.uncertainty.conformal import Conformal
from hybrid_train.posthoc.conformal import (
    ENTRIES,
    USUAL,
    calibrate,
    measure,
    rounded_down,
    sets,
    table,
)

CLASSES = ("no cancer", "cancer")


def draws(rng, count, prevalence=0.2):
    """Probabilities of a calibrated two-class model of middling skill, and true labels."""
    score = rng.normal(0, 1.5, count) + np.log(prevalence / (1 - prevalence))
    p = 1 / (1 + np.exp(-score))
    labels = (rng.random(count) < p).astype(int)
    return np.stack([1 - p, p], 1).astype(np.float32), labels


def test_rounding_down():
    rng = np.random.default_rng(0)
    for value in [*rng.random(500), *10 ** rng.uniform(-12, 0, 500), 0.5, 1.0, 0.123456]:
        lower = rounded_down(float(value))
        assert 0 <= value - lower <= 1.001e-5 * value
        assert len(f"{lower:.12g}".replace("0.", "").split("e")[0].strip("0.")) <= 7
    assert rounded_down(0.0) == rounded_down(1e-320) == 0.0


def test_table_of_few_images_is_complete():
    values = np.random.default_rng(0).random(40)
    kept = table(values, 40)
    assert kept.ranks is None
    assert np.allclose(kept.probabilities, np.sort(values)[::-1], rtol=1e-5, atol=0)


def test_compact_table_is_never_stricter():
    values = np.random.default_rng(0).random(30_000)
    whole, compact = table(values, 30_000), table(values, 300)
    assert len(compact.probabilities) <= 300
    assert compact.count == 30_000
    loss = []
    for coverage in np.linspace(0.005, 0.999, 400):
        exact, coarse = whole.threshold(coverage), compact.threshold(coverage)
        assert coarse <= exact
        loss.append(exact - coarse)  # uniform values: the same in units of coverage
    assert max(loss) < 0.008, max(loss)
    assert max(loss[-40:]) < 0.0015, max(loss[-40:])
    for coverage in USUAL:
        assert whole.threshold(coverage) == compact.threshold(coverage), coverage


@pytest.mark.parametrize("classes", [2, 5, 30, 80])
def test_the_spec_stays_small(classes):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(classes), 20_000)
    names = [f"class {i}" for i in range(classes)]
    labels = rng.integers(0, classes, 20_000)
    conformal = calibrate(probabilities, labels, names, groups=labels)
    text = json.dumps(conformal.to_dict())
    assert len(text) < 20_000, len(text)
    tables = [conformal.images, *conformal.classes.values()]
    assert sum(len(t.probabilities) for t in tables) <= ENTRIES
    assert bool(conformal.classes) == (classes < 40)
    spec = ModelSpec(
        classes=tuple(names), preprocess=Preprocess(), vit=Branch(model="v", features=1),
        cnn=Branch(model="c", features=1), head=Head(), extras={"conformal": json.loads(text)},
    )  # fmt: skip
    assert Conformal.of(spec) == conformal
    assert conformal.rule(0.9, "image").coverage == 0.9


@pytest.mark.parametrize("by", ["class", "image"])
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_coverage_is_kept(by, coverage):
    """The mean over many draws of calibration data is the nominal coverage or slightly more."""
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(200):
        conformal = calibrate(*draws(rng, 400), CLASSES)
        rule = conformal.rule(coverage, by)
        probabilities, labels = draws(rng, 2000)
        inside = sets(conformal, probabilities, coverage, by)[np.arange(2000), labels]
        thresholds = np.array([rule.thresholds[name] for name in CLASSES])
        reached = probabilities[np.arange(2000), labels] >= thresholds[labels]
        assert (inside >= reached).all()  # the most probable label is added, none taken away
        masks = [labels == c for c in (0, 1)] if by == "class" else [np.ones(2000, bool)]
        covered.append([reached[mask].mean() for mask in masks])
    mean = np.mean(covered, 0)
    # 200 draws of about 80 or 400 calibration images: the mean is known to about 0.003.
    assert (mean > coverage - 0.008).all(), mean
    assert (mean < coverage + 0.02).all(), mean


def test_marginal_coverage_can_miss_the_rare_class():
    """Why the default counts within each class."""
    rng = np.random.default_rng(2)
    conformal = calibrate(*draws(rng, 4000, 0.05), CLASSES)
    probabilities, labels = draws(rng, 4000, 0.05)
    rows = {(r["by"], r["wanted"]): r for r in measure(conformal, probabilities, labels)}
    assert rows["image", 0.9]["coverage"] >= 0.88
    assert rows["image", 0.9]["per_class"]["cancer"] < 0.4
    assert rows["class", 0.9]["per_class"]["cancer"] > 0.84
    assert rows["class", 0.9]["mean_size"] > rows["image", 0.9]["mean_size"]
