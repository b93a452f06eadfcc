"""Types in the graph, and the emulation that judges them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hybrid_export.network.deployment import DeploymentGraph
from hybrid_export.onnx_graph.dtype_report import graph_dtype_report
from hybrid_export.onnx_graph.evaluator import RoundingEvaluator
from hybrid_export.onnx_graph.io import load, save
from hybrid_export.parity.layer_diff import compare_layers, describe_layers
from hybrid_export.precision.fallback import (
    half_attempts,
    nodes_of,
    out_of_range,
    sensitivity,
    units,
)
from hybrid_export.precision.half import SENSITIVE_OPERATORS, residual_additions, to_half
from hybrid_export.sessions import open_file
from hybrid_rt.errors import ExportError

HALF = {
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}


def pixels(count: int = 3, size: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def lower_to(model, precision):
    return lambda kept: to_half(model, precision, kept)


def small_graph(nodes, initializers, opset: int = 22):
    """A graph from uint8 images [n, 1, 1, 3] to one output "y"."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 1, 1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def cast(source, target, kind):
    return helper.make_node("Cast", [source], [target], to=kind)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_operator_has_one_type(tiny_onnx, precision):
    typed = to_half(load(tiny_onnx), precision)
    onnx.checker.check_model(typed, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(typed, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {t.name: t.data_type for t in inferred.graph.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in inferred.graph.output}
    half = HALF[precision][0]
    weighted = [n for n in typed.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")]
    in_fp32 = [n.name for n in weighted if types[n.output[0]] == TensorProto.FLOAT]
    assert in_fp32 == ["/head.12/Gemm"], "only the last layer"
    for node in typed.graph.node:
        if node.op_type in SENSITIVE_OPERATORS:
            assert types[node.output[0]] == TensorProto.FLOAT, node.name
    assert {types[o.name] for o in typed.graph.output} == {TensorProto.FLOAT}
    assert half in types.values()


def test_the_dtype_report_agrees(tiny_onnx, tmp_path):
    path = save(to_half(load(tiny_onnx), "fp16"), tmp_path / "model.fp16.onnx")
    assert graph_dtype_report(path)["weight_share"]["float16"] > 0.95


def test_fp16_overflows_at_65504():
    """x * 256 of x = 255 and 256 fits; of x * 257 it does not."""
    nodes = [
        cast("images", "x", TensorProto.FLOAT16),
        helper.make_node("Mul", ["x", "factor"], ["large"]),
        helper.make_node("Mul", ["large", "back"], ["small"]),
        cast("small", "y", TensorProto.FLOAT),
    ]

    def run(factor):
        model = small_graph(nodes, {"factor": np.float16(factor), "back": np.float16(2**-8)})
        return RoundingEvaluator(model).run(np.full((1, 1, 1, 3), 255, np.uint8))["y"].ravel()

    assert (run(256) == 255).all()
    assert np.isinf(run(260)).all(), "65504 is the largest FP16 number"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_intermediate_is_rounded(precision):
    """(x + 1) - x is not 1 where x + 1 has no room for the 1."""
    kind, dtype = HALF[precision]
    large = np.array(4096 if precision == "fp16" else 512, dtype)
    nodes = [
        cast("images", "x", kind),
        helper.make_node("Add", ["x", "large"], ["sum"]),
        helper.make_node("Sub", ["sum", "large"], ["difference"]),
        cast("difference", "y", TensorProto.FLOAT),
    ]
    x = np.array([1, 2, 3], np.uint8).reshape(1, 1, 1, 3)
    got = RoundingEvaluator(small_graph(nodes, {"large": large})).run(x)["y"].ravel()
    expected = (x.ravel().astype(dtype) + large).astype(dtype) - large
    assert got.tolist() == expected.astype(np.float32).tolist()
    assert got.tolist() != [1, 2, 3]


def test_products_are_summed_in_fp32():
    """A sum of 4096 ones: an FP16 accumulator would stop at 2048."""
    nodes = [
        cast("images", "x", TensorProto.FLOAT16),
        helper.make_node("MatMul", ["x", "spread"], ["ones"]),
        helper.make_node("MatMul", ["ones", "collect"], ["sum"]),
        cast("sum", "y", TensorProto.FLOAT),
    ]
    spread = np.zeros((3, 4096), np.float16)
    spread[0] = 1
    model = small_graph(nodes, {"spread": spread, "collect": np.ones((4096, 1), np.float16)})
    assert (RoundingEvaluator(model).run(np.ones((1, 1, 1, 3), np.uint8))["y"] == 4096).all()


def test_mixed_types_are_refused():
    nodes = [
        cast("images", "x", TensorProto.FLOAT16),
        helper.make_node("Add", ["x", "fp32"], ["y"], name="/mixed"),
    ]
    model = small_graph(nodes, {"fp32": np.float32(1)})
    with pytest.raises(ExportError, match="/mixed mixes FLOAT, FLOAT16"):
        RoundingEvaluator(model).run(np.zeros((1, 1, 1, 3), np.uint8))


def test_evaluator_in_fp32_equals_onnx_runtime(tiny_model, tiny_onnx):
    got = RoundingEvaluator(load(tiny_onnx)).run(pixels())
    expected = open_file(tiny_onnx, tiny_model[1]).run(pixels())
    for name, values in expected.items():
        gap = float(np.abs(got[name] - values).max())
        assert gap < 2e-5, f"{name}: {gap}"


def test_an_operator_without_a_fast_form_runs_by_the_reference():
    nodes = [
        cast("images", "x", TensorProto.FLOAT),
        helper.make_node("Softsign", ["x"], ["y"]),
    ]
    got = RoundingEvaluator(small_graph(nodes, {})).run(np.full((2, 1, 1, 3), 3, np.uint8))["y"]
    assert np.allclose(got, 0.75)


def test_evaluator_of_an_unknown_operator():
    nodes = [
        cast("images", "x", TensorProto.FLOAT),
        helper.make_node("Weird", ["x"], ["y"], name="/weird"),
    ]
    with pytest.raises(ExportError, match="/weird cannot be validated here"):
        RoundingEvaluator(small_graph(nodes, {}))


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Slice", {"s": [-1], "e": [-4], "axes": [3], "steps": [-1]}, {}),
        ("Pad", {"pads": [0, 0, 0, 1, 0, 0, 0, 2]}, {"mode": "reflect"}),
        ("Gather", {"index": [2, 0]}, {"axis": 3}),
        ("ReduceMean", {"axes": [3]}, {"keepdims": 0}),
        ("Clip", {"low": np.float32(3), "high": np.float32(9)}, {}),
        ("ArgMax", {}, {"axis": 3}),
    ],
)
def test_reference_operators_equal_onnx_runtime(operator, inputs, attributes):
    import onnxruntime

    arrays = {k: v if isinstance(v, np.generic) else np.array(v) for k, v in inputs.items()}
    nodes = [
        cast("images", "x", TensorProto.FLOAT),
        helper.make_node(operator, ["x", *arrays], ["found"], **attributes),
        cast("found", "y", TensorProto.FLOAT),
    ]
    model = small_graph(nodes, arrays)
    x = np.array([[1, 7, 5], [2, 11, 3]], np.uint8).reshape(2, 1, 1, 3)
    opened = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = opened.run(None, {"images": x})
    np.testing.assert_array_equal(RoundingEvaluator(model).run(x)["y"], expected)


def test_kept_nodes_stay_in_fp32(tiny_onnx):
    model = load(tiny_onnx)
    everything = {node.name for node in model.graph.node}
    kept = to_half(model, "fp16", everything)
    assert TensorProto.FLOAT16 not in {t.data_type for t in kept.graph.initializer}
    got, want = RoundingEvaluator(kept).run(pixels()), RoundingEvaluator(model).run(pixels())
    assert (got["logits"] == want["logits"]).all()


def test_residual_additions_are_the_residuals(tiny_onnx):
    names = residual_additions(load(tiny_onnx))
    in_vit = [name for name in names if name.startswith("/vit.blocks")]
    assert len(in_vit) == 2 * 6
    assert all("Add" in name for name in names)


def test_keeping_more_errs_less(tiny_onnx):
    model = load(tiny_onnx)
    x = pixels(32)
    expected = RoundingEvaluator(model).run(x)["logits"]
    errors = []
    for attempt in half_attempts(model, "bf16", lower_to(model, "bf16"), x):
        got = RoundingEvaluator(to_half(model, "bf16", attempt.nodes)).run(x)["logits"]
        errors.append(float(np.abs(got - expected).mean()))
    assert len(errors) == 6
    assert errors[-1] < errors[0], errors


def test_units_cover_the_network(tiny_onnx):
    model = load(tiny_onnx)
    found = units(model)
    assert found[:2] == ["vit.patch_embed", "vit.blocks.0"]
    assert "cnn.network.layer2" in found
    assert found[-1] == "head"
    ranked = sensitivity(model, lower_to(model, "fp16"), pixels())
    assert [name for name, _ in ranked] != found
    assert all(np.diff([error for _, error in ranked]) <= 0)
    assert len(nodes_of(model, "vit.blocks.1")) > len(nodes_of(model, "vit.blocks.1.attn"))
    assert not nodes_of(model, "vit.blocks.1") & nodes_of(model, "vit.blocks.2")


def test_out_of_range_finds_producers_and_readers(tiny_onnx):
    model = load(tiny_onnx)
    assert out_of_range(model, pixels(), 1e9) == set()
    assert out_of_range(model, pixels(), float("inf")) == set()
    large = out_of_range(model, pixels(), 0.0)
    assert len(large) == len(model.graph.node)


def test_layers_are_compared_by_name(tiny_model, tiny_onnx):
    graph = DeploymentGraph(*tiny_model)
    model = load(tiny_onnx)
    gaps = {gap.module: gap.error for gap in compare_layers(graph, model, pixels(1))}
    assert len(gaps) > 60
    assert max(gaps.values()) < 1e-4, gaps
    node = next(n for n in model.graph.node if n.name == "/vit.blocks.4.norm2/LayerNormalization")
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    text = describe_layers(graph, model, pixels(1), "fp32")
    assert text.startswith("first layer that differs: vit.blocks.4.norm2 (relative error")
