"""The Gaussian of the features: what it flags, how often it is wrong, how steady it is."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hybrid_train.posthoc.ood import ROUNDING, fit_ood

BRANCHES = (40, 80)
FEATURES = sum(BRANCHES)


@pytest.fixture(scope="module")
def world():
    """A function that draws features: 12 directions of large variance, noise, two scales."""
    rng = np.random.default_rng(0)
    mix = rng.normal(0, 1, (12, FEATURES)) * np.linspace(3, 0.3, 12)[:, None]
    mean, unit = rng.normal(0, 2, FEATURES), np.repeat((1.0, 0.1), BRANCHES)

    def draw(count, seed):
        own = np.random.default_rng([7, seed])
        hidden, noise = own.normal(0, 1, (count, 12)), own.normal(0, 0.5, (count, FEATURES))
        return ((mean + hidden @ mix + noise) * unit).astype(np.float32)

    return draw


@pytest.fixture(scope="module")
def detector(world):
    return fit_ood(world(1500, 1), world(500, 2), BRANCHES)


def test_outlier_features_are_told_apart(world, detector):
    own = detector.score(world(1000, 3))
    rng = np.random.default_rng(3)
    shifted = world(300, 4) + rng.normal(0, 1, FEATURES).astype(np.float32) * 2
    off_the_plane = world(300, 5) * (1 + rng.normal(0, 0.5, (300, FEATURES)).astype(np.float32))
    for outliers in (shifted, off_the_plane):
        scores = detector.score(outliers)
        truth = np.repeat((0, 1), (len(own), len(scores)))
        assert roc_auc_score(truth, np.concatenate((own, scores))) >= 0.99
        assert (scores > 1).mean() > 0.9


def test_false_alarms_are_as_rare_as_promised(world):
    """Over many validation sets: 1% of features with the error allowed for, fewer without it."""
    train, fresh = world(1500, 1), world(4000, 6)
    rounded = fresh * (1 + np.random.default_rng(1).normal(0, ROUNDING, fresh.shape))
    rates = []
    for seed in range(40):
        fitted = fit_ood(train, world(300, 100 + seed), BRANCHES)
        rates.append([(fitted.score(f) > 1).mean() for f in (rounded, fresh)])
    mean = np.mean(rates, 0)
    assert 0.006 < mean[0] < 0.0125, mean
    assert mean[1] <= mean[0], mean


def test_few_validation_images_use_largest_distance(world):
    validation = world(20, 2)
    fitted = fit_ood(world(1500, 1), validation, BRANCHES)
    assert fitted.threshold == fitted.reference[-1]
    assert (fitted.score(validation) <= 1).all()
    assert (fitted.score(world(500, 3)) > 1).mean() < 0.1  # 1 in 21 is what 20 images allow


def test_it_equals_the_full_mahalanobis_distance(world, detector):
    """The small product equals the distance under the complete covariance matrix it stands for."""
    features = world(50, 9).astype(np.float64)
    basis, rest = detector.basis.astype(np.float64), float(detector.rest[0])
    covariance = rest * np.eye(FEATURES) + basis.T @ np.diag(detector.variances - rest) @ basis
    z = (features - detector.mean) / detector.scale
    exact = np.sqrt(np.einsum("ni,ij,nj->n", z, np.linalg.inv(covariance), z) / FEATURES)
    gap = np.abs(detector.distances(features) / exact - 1).max()
    assert gap < 2e-5, gap


def test_training_images_fewer_than_features(world):
    fitted = fit_ood(world(30, 1), world(20, 2), BRANCHES)
    assert fitted.basis.shape == (3, FEATURES)
    assert np.isfinite(fitted.score(world(10, 3))).all()
    alike = fit_ood(np.ones((8, FEATURES)), np.ones((4, FEATURES)) * 1.01, BRANCHES)
    assert alike.score(np.full((1, FEATURES), 5.0))[0] > 1
