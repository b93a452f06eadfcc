"""The end of a run: what is fitted on validation data is in the spec, the files and the metrics."""

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from hybrid_rt.images import load_pixels
from hybrid_rt.uncertainty.conformal import Conformal
from hybrid_rt.uncertainty.ood import OodDetector
from hybrid_train.cli import main
from hybrid_train.data.samples import DataOptions
from hybrid_train.data.sources import open_data
from hybrid_train.evaluation.bootstrap import bootstrap_interval, share_interval
from hybrid_train.model.checkpoint import load_checkpoint
from hybrid_train.phantom import write_parquet
from hybrid_train.posthoc.operating_point import at_threshold


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one epoch on 48 small phantoms of 12 patients."""
    root = tmp_path_factory.mktemp("fitted")
    write_parquet(root / "data", patients=12, seed=0, size=64)
    arguments = "--preset tiny --image-size 32 --epochs 1 --batch-size 8 --precision fp32 "
    arguments += "--val-fraction 0.3 --threshold sensitivity=0.8"
    assert main([str(root / "data"), *arguments.split(), "--output", str(root / "run")]) == 0
    return root / "run"


def test_the_spec_has_what_was_fitted(run):
    _, spec = load_checkpoint(run)
    metrics = json.loads((run / "metrics.json").read_text())
    conformal = Conformal.of(spec)
    assert conformal.images.count == metrics["val"]["count"]
    assert sum(t.count for t in conformal.classes.values()) == conformal.images.count
    split = json.loads((run / "split.json").read_text())
    assert len(split["val"]) / 4 == conformal.groups == 3  # four images a patient
    assert spec.operating_point.criterion == "sensitivity=0.8"
    assert metrics["val"]["operating_point"]["sensitivity"] == spec.operating_point.sensitivity
    assert metrics["val"]["operating_point"]["sensitivity"] >= 0.8
    assert metrics["test"]["operating_point"]["threshold"] == spec.operating_point.threshold
    assert {row["by"] for row in metrics["test"]["prediction_sets"]} == {"class", "image"}
    assert len(spec.to_json()) < 20_000
    assert metrics["val"]["ood_rate"] <= 0.1


def test_the_detector_fits_the_training_images(run):
    """Its mean is that of the runtime's own pixels through the network."""
    model, spec = load_checkpoint(run)
    samples = open_data(str(run.parent / "data"), DataOptions())
    names = json.loads((run / "split.json").read_text())["train"]
    sources = [samples.source(samples.names.index(name)) for name in names]
    pixels = np.stack([load_pixels(source, spec.preprocess) for source in sources])
    with torch.no_grad():
        features = model.forward_features(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0)
    detector = OodDetector.load(run, spec)
    gap = np.abs(features.numpy().mean(0) - detector.mean).max()
    assert gap < 1e-5, gap
    metrics = json.loads((run / "metrics.json").read_text())
    assert len(detector.reference) == metrics["val"]["count"]
    assert detector.basis.shape == (3, spec.num_features)


def test_the_predictions_reproduce_the_metrics(run):
    metrics = json.loads((run / "metrics.json").read_text())
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "split", "image", "group", "label", "predicted", "p_no cancer", "p_cancer", "ood_score",
        "view", "laterality", "density", "age", "implant",
    ]  # fmt: skip
    split = json.loads((run / "split.json").read_text())
    for name in ("val", "test"):
        subset = [row for row in rows if row["split"] == name]
        assert [row["image"] for row in subset] == split[name]
        right = [row["label"] == row["predicted"] for row in subset]
        assert np.mean(right) == metrics[name]["accuracy"]
        truth = [row["label"] == "cancer" for row in subset]
        scores = [float(row["p_cancer"]) for row in subset]
        assert roc_auc_score(truth, scores) == pytest.approx(metrics[name]["auroc"], abs=1e-12)
        flagged = [float(row["ood_score"]) > 1 for row in subset]
        assert np.mean(flagged) == metrics[name]["ood_rate"]
    assert {row["laterality"] for row in rows} == {"L", "R"}
    assert all(row["age"] == "" or 20 < int(row["age"]) < 100 for row in rows)


def test_what_a_threshold_achieves_by_hand():
    found = at_threshold(
        np.array([0.9, 0.4, 0.6, 0.1, 0.2]), np.array([1, 1, 0, 0, 0]), 0.5, bootstrap=200
    )
    assert found["sensitivity"] == 0.5
    assert found["specificity"] == pytest.approx(2 / 3)
    assert found["positive_predictive_value"] == 0.5
    assert found["negative_predictive_value"] == pytest.approx(2 / 3)
    assert found["positive_calls"] == 2
    low, high = found["specificity_interval"]
    assert low < 2 / 3 < high
    none = at_threshold(np.array([0.1, 0.2]), np.array([0, 0]), 0.5, bootstrap=10)
    assert none["sensitivity"] is None
    assert none["positive_predictive_value"] is None
    assert none["sensitivity_interval"] is None


def test_share_interval_equals_bootstrap_interval():
    rng = np.random.default_rng(0)
    right, counted = rng.random(60) < 0.7, rng.random(60) < 0.5
    for groups in (None, rng.integers(0, 9, 60)):

        def share(chosen):
            inside = counted[chosen]
            return right[chosen][inside].mean() if inside.any() else None

        slow = bootstrap_interval(share, 60, groups, 300, 5)
        np.testing.assert_allclose(share_interval(right, counted, groups, 300, 5), slow, rtol=1e-12)


def test_intervals_of_a_threshold_draw_patients():
    rng = np.random.default_rng(0)
    p = np.repeat(rng.random(40), 10)
    labels = np.repeat(rng.integers(0, 2, 40), 10)
    patients = np.repeat(np.arange(40), 10)
    width = [
        np.diff(at_threshold(p, labels, 0.5, groups)["sensitivity_interval"])[0]
        for groups in (None, patients)
    ]
    assert width[1] > 2 * width[0], width
