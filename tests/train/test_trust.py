"""A really trained model, exported: coverage, false alarms and outliers on the engine."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom

from hybrid_export.cli import main as export
from hybrid_rt import HybridEngine
from hybrid_rt.uncertainty.conformal import Conformal
from hybrid_train.cli import main as train
from tools import out_of_distribution

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

#: A test of this many numbers may fail once in ten thousand runs of new data; the data are fixed.
RARE = 1e-4


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Some minutes of training: small, but it has learned."""
    root = tmp_path_factory.mktemp("trust")
    options = "phantom:1000 --preset tiny --image-size 128 --epochs 7 --val-fraction 0.25"
    assert train([*options.split(), "--output", str(root / "run")]) == 0
    assert export([str(root / "run"), "--output", str(root / "bundle"), "--no-tensorrt"]) == 0
    with HybridEngine(root / "bundle", device="cpu", batch_size=16) as opened:
        yield opened


@pytest.fixture(scope="module")
def fresh(engine):
    """Predictions with sets for 100 patients that the run never saw, and the true labels."""
    rows = out_of_distribution.phantoms(100)
    truth = [engine.spec.classes[row["cancer"]] for row in rows]
    images = [row["image"] for row in rows]
    return images, truth


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("by", ["class", "image"])
def test_coverage_is_within_its_interval(engine, fresh, coverage, by):
    """Coverage on new images follows a beta-binomial (Angelopoulos and Bates 2023, 3.2)."""
    images, truth = fresh
    predictions = engine.predict(images, coverage=coverage, coverage_by=by)
    conformal = Conformal.of(engine.spec)
    rule = conformal.rule(coverage, by)
    for name in engine.spec.classes if by == "class" else [None]:
        chosen = [(a, t) for a, t in zip(predictions, truth, strict=True) if name in (None, t)]
        covered = sum(t in a.prediction_set for a, t in chosen)
        # Without the most probable label, which only adds: this has an upper end too.
        reached = sum(a.probabilities[t] >= rule.thresholds[t] for a, t in chosen)
        count = conformal.images.count if name is None else conformal.classes[name].count
        rank = int(np.ceil((count + 1) * coverage - 1e-9))
        law = betabinom(len(chosen), rank, count + 1 - rank)
        low, high = law.ppf(RARE), law.ppf(1 - RARE)
        shown = f"{name or 'all'}: {covered}/{len(chosen)} covered, {reached} without the top label"
        print(f"{by} {coverage}: {shown}; {low:.0f} to {high:.0f}")
        assert covered >= low, shown
        assert low <= reached <= high, shown


def test_phantoms_are_seldom_flagged(engine, fresh):
    rate = np.mean([p.is_ood for p in engine.predict(fresh[0])])
    print(f"flagged: {rate:.2%} of {len(fresh[0])} fresh phantoms")
    assert rate <= 0.02, rate


@pytest.mark.parametrize("name", list(out_of_distribution.OOD_SETS))
def test_outlier_images_are_told_apart(engine, fresh, name):
    own = out_of_distribution.ood_scores(engine, fresh[0])
    scores = out_of_distribution.ood_scores(engine, out_of_distribution.OOD_SETS[name]())
    area = out_of_distribution.auroc(own, scores)
    print(f"{name}: AUROC {area:.3f}, flagged {(scores > 1).mean():.0%}")
    assert area >= 0.95, area
    assert (scores > 1).mean() >= 0.8, scores


def test_model_abstains_on_ood_images_only(engine, fresh):
    strange = out_of_distribution.chests(4) + out_of_distribution.digits(4)
    assert all(p.abstained for p in engine.predict(strange, abstain=True))
    assert not any(p.abstained for p in engine.predict(fresh[0][:8], abstain=True))
