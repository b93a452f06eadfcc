"""The measures agree with values worked out by hand, and with scikit-learn's definitions."""

import json

import numpy as np
import pytest

from hybrid_rt.errors import DataError, TrainingError, UsageError
from hybrid_train.evaluation.bootstrap import auroc_interval, bootstrap_interval
from hybrid_train.evaluation.metrics import auroc, evaluate, quick
from hybrid_train.evaluation.reliability import calibration_error, reliability, softmax
from hybrid_train.posthoc.operating_point import choose_operating_point
from hybrid_train.posthoc.temperature import fit_temperature


def logits_of(probabilities):
    p = np.asarray(probabilities, float)
    return np.log(np.stack([1 - p, p], 1))


P = np.array([0.1, 0.4, 0.35, 0.8])
Y = np.array([0, 0, 1, 1])


def test_a_worked_example():
    result = evaluate(logits_of(P), Y, ("healthy", "cancer"), bootstrap=0)
    assert result["auroc"] == pytest.approx(0.75)
    assert result["accuracy"] == 0.75
    assert result["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert result["confusion_matrix"] == [[2, 0], [1, 1]]
    assert result["loss"] == pytest.approx(-np.log([0.9, 0.6, 0.35, 0.8]).mean())
    assert result["brier"] == pytest.approx(2 * np.mean([0.01, 0.16, 0.65**2, 0.04]))
    assert result["sensitivity_at_90_specificity"] == 0.5
    row = result["per_class"][1]
    assert (row["precision"], row["recall"], row["support"]) == (1.0, 0.5, 2)
    assert row["f1"] == pytest.approx(2 / 3)
    assert result["f1_macro"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_positive_can_be_the_first_class():
    result = evaluate(logits_of(P), Y, ("healthy", "cancer"), positive="healthy", bootstrap=0)
    assert result["auroc"] == pytest.approx(0.75)
    with pytest.raises(UsageError, match="positive is 'flu'; expected one of healthy, cancer"):
        evaluate(logits_of(P), Y, ("healthy", "cancer"), positive="flu")


def test_absent_class_is_null_with_a_note():
    logits = np.eye(3)[[0, 1, 1, 0]]
    result = evaluate(logits, np.array([0, 1, 1, 0]), ("a", "b", "c"), bootstrap=20)
    assert result["per_class"][2]["auroc"] is None
    assert result["notes"] == ["no image of class 'c' in this split"]
    one = evaluate(logits_of(P), np.zeros(4, int), ("a", "b"), bootstrap=20)
    assert one["auroc"] is None
    assert one["auroc_interval"] is None
    json.dumps([result, one], allow_nan=False)


def test_quick_is_evaluate_in_short():
    logits = np.random.default_rng(0).normal(size=(60, 3))
    labels = np.arange(60) % 3
    full = evaluate(logits, labels, ("a", "b", "c"), bootstrap=0)
    for name, value in quick(logits, labels).items():
        assert value == pytest.approx(full[name])


def test_the_interval_draws_patients_not_images():
    """A hundred copies of each patient's image must not make the interval narrower."""
    rng = np.random.default_rng(1)
    labels = np.arange(40) % 2
    probabilities = np.clip(0.5 + 0.25 * (labels - 0.5) + rng.normal(0, 0.2, 40), 0.01, 0.99)
    names = ("a", "b")
    single = evaluate(logits_of(probabilities), labels, names, groups=np.arange(40), bootstrap=200)
    copied = evaluate(
        logits_of(np.repeat(probabilities, 30)),
        np.repeat(labels, 30),
        names,
        groups=np.repeat(np.arange(40), 30),
        bootstrap=200,
    )
    assert copied["auroc_interval"] == pytest.approx(single["auroc_interval"])
    naive = evaluate(
        logits_of(np.repeat(probabilities, 30)), np.repeat(labels, 30), names, bootstrap=200
    )
    width = np.diff(copied["auroc_interval"])[0]
    assert np.diff(naive["auroc_interval"])[0] < 0.5 * width


def test_interval_covers_the_truth_in_95_percent():
    rng = np.random.default_rng(2)
    inside = 0
    for k in range(100):
        sample = rng.normal(0.3, 1, 50)
        low, high = bootstrap_interval(lambda i, s=sample: float(s[i].mean()), 50, None, 300, k)
        inside += low <= 0.3 <= high
    assert 85 <= inside <= 99


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("grouped", [True, False])
def test_auroc_interval_equals_scikit_learn_draws(classes, grouped):
    """Ties, uneven groups and draws that lack a class included."""
    rng = np.random.default_rng(4)
    labels = np.concatenate([np.arange(classes), rng.integers(classes - 1, size=56)])
    logits = rng.normal(size=(len(labels), classes)).round(1) + np.eye(classes)[labels]
    probabilities = softmax(logits)
    groups = rng.integers(17, size=len(labels)) if grouped else None
    chosen = [1] if classes == 2 else range(classes)
    fast = auroc_interval(probabilities, labels, chosen, groups, 150, 0)
    slow = bootstrap_interval(
        lambda i: auroc(probabilities[i], labels[i], 1), len(labels), groups, 150, 0
    )
    assert fast == pytest.approx(slow, abs=1e-12)


def test_no_images_and_lost_logits_are_errors():
    with pytest.raises(DataError, match="no images to measure"):
        evaluate(np.zeros((0, 2)), np.zeros(0, int), ("a", "b"))
    with pytest.raises(TrainingError, match="logits of 1 of 2 images are not finite"):
        evaluate(np.array([[0, 1], [np.nan, 0]]), np.array([0, 1]), ("a", "b"))


def test_temperature_changes_calibration_only():
    sharp = logits_of(P) * 3
    result = evaluate(sharp, Y, ("a", "b"), temperature=3.0, bootstrap=0)
    assert result["ece"] == evaluate(logits_of(P), Y, ("a", "b"), bootstrap=0)["ece"]
    assert result["ece_before_temperature"] == calibration_error(softmax(sharp), Y)["ece"]
    assert result["auroc"] == pytest.approx(0.75)


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(truth):
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (20000, 3))
    labels = (softmax(logits / truth).cumsum(1) < rng.random((20000, 1))).sum(1)
    assert fit_temperature(logits, labels) == pytest.approx(truth, rel=0.05)


def test_temperature_is_one_where_it_cannot_be_fitted():
    assert fit_temperature(np.eye(2), np.array([0, 1])) == 1.0
    assert fit_temperature(np.eye(2), np.array([0, 0])) == 1.0


def test_calibration_error_by_hand():
    probabilities = np.array([[0.95, 0.05]] * 4 + [[0.3, 0.7]] * 2)
    labels = np.array([0, 0, 0, 1, 1, 0])
    expected = (4 * abs(0.95 - 0.75) + 2 * abs(0.7 - 0.5)) / 6
    assert calibration_error(probabilities, labels)["ece"] == pytest.approx(expected)
    diagram = reliability(np.log(probabilities), labels)
    assert sum(diagram["count"]) == 6
    assert diagram["accuracy"][14] == 0.75


SCORES = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.7, 0.8, 0.9])
TRUTH = np.array([0, 0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("criterion", "sensitivity", "specificity"),
    [
        ("sensitivity=1.0", 1.0, 0.75),
        ("sensitivity=0.75", 0.75, 1.0),
        ("specificity=1.0", 0.75, 1.0),
        ("0.25", 1.0, 0.5),
    ],
)
def test_operating_points(criterion, sensitivity, specificity):
    point = choose_operating_point(SCORES, TRUTH, positive="cancer", criterion=criterion)
    assert point.positive == "cancer"
    assert (point.sensitivity, point.specificity) == (sensitivity, specificity)
    low, high = point.sensitivity_interval
    assert low <= sensitivity <= high


def test_youden_takes_the_best_sum():
    point = choose_operating_point(SCORES, TRUTH, positive="cancer", criterion="youden")
    assert point.sensitivity + point.specificity == 1.75


def test_saturated_probabilities_set_threshold_to_one():
    """1 - 1e-12 is 1 for a runtime in float32: no threshold separates these negatives."""
    scores = np.array([0.0, 1.0 - 1e-12, 1.0, 1.0])
    point = choose_operating_point(
        scores, np.array([0, 0, 0, 1]), positive="cancer", criterion="specificity=0.9"
    )
    assert (point.threshold, point.sensitivity) == (1.0, 1.0)
    assert point.specificity == pytest.approx(1 / 3)


@pytest.mark.parametrize("criterion", ["best", "sensitivity=2", "sensitivity=", "1.5", "recall=1"])
def test_unknown_rules_say_what_is_expected(criterion):
    with pytest.raises(UsageError, match=r"expected sensitivity=0\.9, specificity=0\.9, youden"):
        choose_operating_point(SCORES, TRUTH, positive="cancer", criterion=criterion)
