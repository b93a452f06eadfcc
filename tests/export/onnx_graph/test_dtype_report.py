"""What a graph holds, counted from the file."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from factories.typed_onnx import write_typed_onnx
from hybrid_export.onnx_graph.dtype_report import check_dtype_report, graph_dtype_report
from hybrid_rt.errors import ExportError, ModelFileError

WEIGHTS = 16 * 3 * 4 * 4 + 16 + 16 + 16 + 16 * 2  # kernel, bias, gain, shift, weight


def test_an_fp16_graph(tmp_path):
    dtype_report = graph_dtype_report(write_typed_onnx(tmp_path / "m.onnx"))
    assert dtype_report == {
        "measured_on": "onnx graph",
        "weight_bytes": {"float16": 2 * WEIGHTS, "float32": 4},
        "weight_share": {
            "float16": round(2 * WEIGHTS / (2 * WEIGHTS + 4), 6),
            "float32": round(4 / (2 * WEIGHTS + 4), 6),
        },
        "layers": {"convolution": {"float16": 1}, "matmul": {"float16": 1}},
    }
    check_dtype_report(dtype_report, "fp16", name="m.onnx")


def test_an_fp32_graph_is_not_fp16(tmp_path):
    dtype_report = graph_dtype_report(write_typed_onnx(tmp_path / "m.onnx", np.float32))
    assert dtype_report["weight_bytes"] == {"float32": 4 * WEIGHTS + 4}
    check_dtype_report(dtype_report, "fp32", name="m.onnx")
    with pytest.raises(
        ExportError,
        match=r"m\.onnx was asked for in fp16 and holds 100\.0% float32 of its weight bytes; "
        r"expected at least 95% float16",
    ):
        check_dtype_report(dtype_report, "fp16", name="m.onnx")


def test_int8_by_quantize_and_dequantize(tmp_path):
    arrays = {
        "w8": np.ones((4, 3, 1, 1), np.int8),
        "ws": np.full(4, 0.1, np.float32),
        "wz": np.zeros(4, np.int8),
        "xs": np.float32(0.1),
        "xz": np.int8(0),
        "plain": np.ones((4, 4, 1, 1), np.float32),
    }
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        make("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        make("DequantizeLinear", ["w8", "ws", "wz"], ["wd"], axis=0),
        make("Conv", ["xd", "wd"], ["y"]),
        make("Conv", ["y", "plain"], ["z"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "q",
        [info("x", TensorProto.FLOAT, ["b", 3, 8, 8])],
        [info("z", TensorProto.FLOAT, ["b", 4, 8, 8])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    path = tmp_path / "q.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    dtype_report = graph_dtype_report(path)
    assert dtype_report["layers"]["convolution"] == {"float32": 1, "int8": 1}
    assert dtype_report["weight_bytes"]["int8"] == 12 + 4 + 1
    with pytest.raises(ExportError, match="asked for in int8"):
        check_dtype_report(dtype_report, "int8", name="q.onnx")


def test_large_weights_need_no_numbers_for_their_type(tmp_path):
    weight = np.zeros((512, 512), np.float16)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["b", 512])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT16, ["b", 512])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "large.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, path, save_as_external_data=True, size_threshold=1024)
    (tmp_path / next(p.name for p in tmp_path.iterdir() if p != path)).unlink()
    dtype_report = graph_dtype_report(path)
    assert dtype_report["weight_share"] == {"float16": 1.0}
    assert dtype_report["layers"]["matmul"] == {"float16": 1}


def test_junk(tmp_path):
    path = tmp_path / "junk.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ModelFileError, match=r"junk\.onnx is not an ONNX file"):
        graph_dtype_report(path)
