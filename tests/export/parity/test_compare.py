"""The parity report: what it passes, and three broken graphs that it must catch."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from hybrid_export.onnx_graph.io import load, save
from hybrid_export.parity.compare import Reference, compare
from hybrid_export.parity.dataset import load_verification
from hybrid_export.parity.metrics import auroc, logit_scale, one_pair, top1_flips
from hybrid_export.parity.tolerances import TOLERANCES
from hybrid_export.sessions import PyTorchSession, open_file


@pytest.fixture(scope="module")
def reference(tiny_model, image_folder):
    model, spec = tiny_model
    return Reference.of(PyTorchSession(model, spec), load_verification(image_folder, spec))


class Altered:
    """A session whose ``run`` is another function."""

    backend = "altered"
    device = "cpu"
    detail = "altered"

    def __init__(self, run):
        self.run = run


def report_of(path, reference, tiny_model):
    return compare(open_file(path, tiny_model[1]), reference, tiny_model[1], TOLERANCES["fp32"])


def test_a_faithful_file_passes(tiny_model, tiny_onnx, reference):
    report = report_of(tiny_onnx, reference, tiny_model)
    assert report.passed, report.failures
    data = report.to_dict()
    assert data["passed"] is True
    assert data["images"] == 12
    assert data["reference"].startswith("PyTorch 2.")
    assert "CPUExecutionProvider" in data["measured_with"]
    assert data["auroc"] == data["auroc_reference"]
    assert data["logits_max_abs"] <= 1e-4


def test_catches_one_scaled_weight(tiny_model, tiny_onnx, reference, tmp_path):
    model = load(tiny_onnx)
    name = next(n.input[1] for n in model.graph.node if n.name == "/vit.blocks.2.mlp.fc2/MatMul")
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] *= 1.5  # one weight of some 190,000
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    report = report_of(save(model, tmp_path / "m.onnx"), reference, tiny_model)
    assert not report.passed
    assert any("logits differ by" in text for text in report.failures)
    assert report.worst_images[0].split(":")[0] in reference.images.names


def test_catches_a_dropped_normalization(tiny_model, tiny_onnx, reference, tmp_path):
    model = load(tiny_onnx)
    node = next(n for n in model.graph.node if n.name == "/vit_norm/Mul")
    consumer = next(n for n in model.graph.node if n.name == "/vit_norm/Add")
    consumer.input[0] = node.input[0]
    report = report_of(save(model, tmp_path / "m.onnx"), reference, tiny_model)
    assert not report.passed
    assert report.features_cosine_min < 0.999


def test_catches_a_row_that_depends_on_its_neighbours(tiny_model, tiny_onnx, reference):
    """Right for every image in the order measured; wrong beside other neighbours."""
    honest = open_file(tiny_onnx, tiny_model[1])
    known = {image.tobytes() for image in reference.images.pixels}

    def leaky(images):
        outputs = dict(honest.run(images))
        strangers = np.array([image.tobytes() not in known for image in images])
        outputs["logits"] = outputs["logits"] + 1e-3 * strangers.any()
        return outputs

    report = compare(Altered(leaky), reference, tiny_model[1], TOLERANCES["fp32"])
    assert report.logits_max_abs <= 1e-4, "the images themselves are right"
    assert not report.passed
    assert any("depends on its batch" in text for text in report.failures)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_catches_a_batch_size_that_is_wrong(tiny_model, tiny_onnx, reference, batch):
    honest = open_file(tiny_onnx, tiny_model[1])

    def wrong(images):
        outputs = dict(honest.run(images))
        if len(images) == batch:
            outputs["logits"] = outputs["logits"].copy()
            outputs["logits"][-1] += 1e-3
        return outputs

    report = compare(Altered(wrong), reference, tiny_model[1], TOLERANCES["fp32"])
    assert any("depends on its batch" in text for text in report.failures)


def test_catches_a_graph_that_mixes_rows(tiny_model, tiny_onnx, reference, tmp_path):
    """Features normalized over the batch: equal rows only where the batch is equal."""
    model = load(tiny_onnx)
    graph = model.graph
    head = next(n for n in graph.node if n.op_type == "Gemm")
    graph.initializer.append(numpy_helper.from_array(np.float32(1e-3), "leak"))
    extra = [
        helper.make_node("ReduceMean", [head.input[0]], ["batch_mean"], axes=[0]),
        helper.make_node("Mul", ["batch_mean", "leak"], ["leaked"]),
        helper.make_node("Add", [head.input[0], "leaked"], ["mixed"]),
    ]
    at = list(graph.node).index(head)
    for i, node in enumerate(extra):
        graph.node.insert(at + i, node)
    head = next(n for n in graph.node if n.op_type == "Gemm")
    head.input[0] = "mixed"
    report = report_of(save(model, tmp_path / "m.onnx"), reference, tiny_model)
    assert any("depends on its batch" in text for text in report.failures)


def test_catches_a_wrong_temperature(tiny_model, tiny_onnx, reference, tmp_path):
    model = load(tiny_onnx)
    softmax = next(n for n in model.graph.node if "probabilities" in n.output)
    softmax.input[0] = "logits"
    report = report_of(save(model, tmp_path / "m.onnx"), reference, tiny_model)
    assert any("probabilities differ from softmax" in text for text in report.failures)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_catches_numbers_that_are_not_finite(tiny_model, tiny_onnx, reference, value):
    honest = open_file(tiny_onnx, tiny_model[1])

    def broken(images):
        outputs = {name: array.copy() for name, array in honest.run(images).items()}
        outputs["logits"][0] = value
        return outputs

    with np.errstate(invalid="ignore"):
        report = compare(Altered(broken), reference, tiny_model[1], TOLERANCES["int8"])
    assert not report.passed
    assert report.to_dict()["logits_max_abs"] is None


def test_tolerances_grow_with_the_logits_and_not_below_ten():
    assert logit_scale(np.array([[3.0, -9.0]], np.float32)) == 1
    assert logit_scale(np.array([[3.0, -40.0]], np.float32)) == 4


def mann_whitney(scores, positive):
    """How often a positive scores above a negative, ties counting half; None without a pair."""
    difference = scores[positive][:, None] - scores[~positive][None, :]
    ranked = (difference > 0) + 0.5 * (difference == 0)
    return float(ranked.mean()) if ranked.size else None


@pytest.mark.parametrize(
    "labels", [[0, 0, 1, 1, -1], [1, 0, -1, 0, 1], [1, 1, 1, 1, 1], [-1] * 5, [0, 1, -1, -1, -1]]
)
def test_auroc_of_two_classes_counts_pairs(tiny_model, labels):
    spec = tiny_model[1].replace(classes=("no", "yes"), operating_point=None)
    scores = np.array([0.1, 0.4, 0.35, 0.4, 0.5], np.float32)
    known = np.array(labels) >= 0
    expected = mann_whitney(scores[known], np.array(labels)[known] == 1)
    got = auroc(np.stack([1 - scores, scores], 1), np.array(labels), spec)
    assert got == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_auroc_of_three_classes_is_the_mean(tiny_model):
    """A class that is absent, or that every image has, is left out of the mean."""
    spec = tiny_model[1].replace(classes=("a", "b", "c"), operating_point=None)
    probabilities = np.random.default_rng(0).dirichlet((1, 1, 1), 20).astype(np.float32)
    labels = np.array([0, 1] * 10)
    areas = [mann_whitney(probabilities[:, c], labels == c) for c in (0, 1)]
    assert auroc(probabilities, labels, spec) == pytest.approx(np.mean(areas), abs=1e-12)


def test_auroc_of_values_that_are_not_finite(tiny_model):
    spec = tiny_model[1].replace(classes=("no", "yes"), operating_point=None)
    probabilities = np.array([[0.5, 0.5], [np.nan, np.nan]], np.float32)
    assert np.isnan(auroc(probabilities, np.array([0, 1]), spec))
    assert auroc(probabilities, np.array([0, -1]), spec) is None, "of an unknown label only"


def test_a_flip_counts_only_where_pytorch_was_clear():
    expected = np.array([[1.0, 0.0], [1.0, 0.999], [0.0, 1.0]], np.float32)
    got = np.array([[0.0, 1.0], [0.999, 1.0], [0.0, 1.0]], np.float32)
    assert top1_flips(got, expected, tie=4e-3).tolist() == [True, False, False]
    assert top1_flips(got, expected, tie=0.0).tolist() == [True, True, False]


def test_one_pair_is_the_step_of_an_auroc():
    assert one_pair(np.array([0, 0, 1, 1, 1, -1])) == pytest.approx(1 / 6)
    assert one_pair(np.array([1, 1])) == 0
