"""Heatmaps of the graph against PyTorch's autograd on the network itself."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from factories.tiny_hybrid import make_model
from hybrid_export.network.deployment import DeployedCnn, DeploymentGraph
from hybrid_export.network.saliency import gelu_gradient, layer_norm_gradient
from hybrid_export.network.saliency_reference import heatmaps
from hybrid_export.onnx_graph.convert import to_onnx
from hybrid_export.onnx_graph.dtype_report import graph_dtype_report
from hybrid_export.onnx_graph.evaluator import RoundingEvaluator
from hybrid_export.onnx_graph.io import save
from hybrid_export.parity.metrics import heatmap_correlation
from hybrid_export.precision.half import to_half
from hybrid_export.sessions import PyTorchSession, open_file
from hybrid_rt.errors import ExportError

NAMES = ("heatmap_vit", "heatmap_cnn")


def pixels(count: int = 3, size: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def explained_model(tiny_model, tmp_path_factory):
    model, spec = tiny_model
    graph = DeploymentGraph(model, spec, explain=True)
    spec = spec.replace(outputs=graph.outputs(spec))
    onnx_model = to_onnx(graph, spec)
    path = save(onnx_model, tmp_path_factory.mktemp("explained") / "model.onnx")
    return model, spec, graph, onnx_model, path


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_equal_autograd(explained_model, backend):
    model, spec, _, _, path = explained_model
    expected = heatmaps(model, pixels())
    got = open_file(path, spec, backend).run(pixels())
    for name in NAMES:
        assert expected[name].max() > 0
        gap = float(np.abs(got[name] - expected[name]).max() / expected[name].max())
        assert gap < 1e-4, f"{name}: {gap}"


@pytest.mark.parametrize("opset", [18, 20])
def test_equal_autograd_in_other_opsets(explained_model, tmp_path, opset):
    model, spec, graph, _, _ = explained_model
    path = save(to_onnx(graph, spec, opset=opset), tmp_path / "model.onnx")
    expected, got = heatmaps(model, pixels()), open_file(path, spec).run(pixels())
    for name in NAMES:
        assert float(np.abs(got[name] - expected[name]).max() / expected[name].max()) < 1e-4


def test_shapes_are_in_the_spec(explained_model):
    _, spec, _, _, path = explained_model
    got = open_file(path, spec).run(pixels(2))
    shapes = {output.name: output.shape[1:] for output in spec.outputs}
    assert shapes["heatmap_vit"] == (3, 3)
    for name in NAMES:
        assert got[name].shape == (2, *shapes[name])


def test_the_outputs_are_the_same_without(explained_model, tiny_model, tiny_onnx):
    _, spec, _, _, path = explained_model
    plain = open_file(tiny_onnx, tiny_model[1]).run(pixels())
    got = open_file(path, spec).run(pixels())
    for name, values in plain.items():
        assert float(np.abs(got[name] - values).max()) < 1e-5


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.99), ("bf16", 0.95)])
def test_half_precision_looks_at_the_same_place(explained_model, precision, least, tmp_path):
    model, spec, _, onnx_model, _ = explained_model
    expected = PyTorchSession(model, spec).run(pixels(6))
    typed = to_half(onnx_model, precision)
    reached, smallest = heatmap_correlation(RoundingEvaluator(typed).run(pixels(6)), expected)
    assert reached >= smallest >= least, (reached, smallest)
    dtype_report = graph_dtype_report(save(typed, tmp_path / "typed.onnx"))
    share = dtype_report["weight_share"]["float16" if precision == "fp16" else "bfloat16"]
    assert share > 0.95, "running backwards must share the weights"


def test_weights_are_not_stored_twice(explained_model, tiny_onnx):
    *_, path = explained_model
    assert path.stat().st_size < tiny_onnx.stat().st_size * 1.02 + 40_000


def test_layer_norm_gradient():
    norm = nn.LayerNorm(7)
    nn.init.normal_(norm.weight)
    x = torch.randn(4, 7, requires_grad=True)
    upstream = torch.randn(4, 7)
    (expected,) = torch.autograd.grad(norm(x), x, upstream)
    assert torch.allclose(layer_norm_gradient(norm, x, upstream), expected, atol=1e-6)


def test_gelu_gradient():
    x = torch.linspace(-5, 5, 101, requires_grad=True)
    (expected,) = torch.autograd.grad(nn.functional.gelu(x).sum(), x)
    assert torch.allclose(gelu_gradient(x), expected, atol=1e-6)


def test_a_cnn_that_is_not_mean_pooled_is_refused():
    cnn = timm.create_model("test_convnext", num_classes=0, global_pool="avg").eval()
    nn.init.normal_(cnn.head.norm.weight)
    assert not DeployedCnn(cnn, torch.rand(2, 3, 64, 64)).mean_pooled
    model, spec = make_model(cnn="test_convnext")
    nn.init.normal_(model.cnn.head.norm.weight)
    with pytest.raises(ExportError, match=r"mean of its last map; try resnet50"):
        DeploymentGraph(model, spec, explain=True)


def test_correlation_leaves_out_a_branch_without_a_say():
    logits = np.float32([[2, 0]])
    loud, silent = np.float32([[[0, 1], [2, 3]]]), np.float32([[[0, 1], [2, 3]]]) * 1e-4
    expected = {"logits": logits, "heatmap_vit": silent, "heatmap_cnn": loud}
    got = {"logits": logits, "heatmap_vit": silent[:, ::-1], "heatmap_cnn": loud}
    assert heatmap_correlation(got, expected, negligible=0.01) == pytest.approx((1, 1))
    assert heatmap_correlation(got, expected)[0] < 0
    wrong = {**got, "heatmap_cnn": loud[:, ::-1]}
    assert heatmap_correlation(wrong, expected, negligible=0.01)[0] < 0
    assert heatmap_correlation(got, {**expected, "heatmap_cnn": silent}, negligible=0.01) is None


def test_correlation_is_what_three_of_four_maps_reach():
    logits = np.tile(np.float32([[2, 0]]), (8, 1))
    maps = np.tile(np.float32([[[0, 1], [2, 3]]]), (8, 1, 1))
    expected = {"logits": logits, "heatmap_cnn": maps}
    one, three = maps.copy(), maps.copy()
    one[0], three[:3] = one[0, ::-1], three[:3, ::-1]
    reached, smallest = heatmap_correlation({"logits": logits, "heatmap_cnn": one}, expected)
    assert (reached, smallest) == (pytest.approx(1), pytest.approx(-0.6))
    assert heatmap_correlation({"logits": logits, "heatmap_cnn": three}, expected)[0] < 0
