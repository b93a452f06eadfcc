"""The roofline counts a model's operations and measures rates of the right order."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.prepare import gpu_name
from benchmarks.roofline import CUDA_TYPES, copy_bandwidth, count_operations, matmul_rate
from benchmarks.tables import computed_in, roofline_share, what_ran


def test_operations_of_a_convolution_and_a_product(tmp_path):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    weight = rng.normal(size=(8, 5)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["map"], pads=[1, 1, 1, 1]),
            helper.make_node("MatMul", ["map", "weight"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 8, 5])],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(weight, "weight")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    work = count_operations(path)
    assert work["operations"] == 2 * (4 * 8 * 8) * 27 + 2 * (4 * 8 * 5) * 8
    assert work["weight_bytes"] == 4 * (kernel.size + weight.size)
    assert count_operations(path, batch=3)["operations"] == 3 * work["operations"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_rate_is_measured(dtype):
    rate = matmul_rate(dtype, sizes=(128,), seconds=0.01)
    assert 1e6 < rate < 1e17


def test_the_share_is_of_what_the_row_computed_in():
    row = {"table": "batch 1", "row": "hybrid-rt int8", "images": 2, "p50_ms": 500.0, "ran": {}}
    roofline = {"operations": 1e9, "int8_operations_per_s": 8e9, "float32_operations_per_s": 1e9}
    assert roofline_share(row, {"roofline": roofline}) == pytest.approx(0.5)
    assert (
        roofline_share(row | {"table": "load to first prediction"}, {"roofline": roofline}) is None
    )


@pytest.mark.parametrize(
    ("row", "ran", "rate"),
    [
        ("hybrid-rt fp32", {"device": "cpu", "detail": "CPU f32, 1 stream"}, "float32"),
        ("OpenVINO default", {"device": "CPU", "precision": "<Type: 'bfloat16'>"}, "bfloat16"),
        ("PyTorch fp16, CUDA", {"device": "cuda", "precision": "float16"}, "cuda_float16"),
        ("ONNX Runtime CUDA", {"device": "CUDAExecutionProvider"}, "cuda_float32"),
        (
            "hybrid-rt TensorRT fp16",
            {"device": "cuda:0", "detail": "TensorRT 10.3, fp16, NVIDIA L4, CUDA graphs"},
            "cuda_float16",
        ),
    ],
)
def test_a_gpu_s_rows_are_held_against_the_gpu_s_rate(row, ran, rate):
    assert computed_in({"row": row, "ran": ran}) == rate


def test_each_row_says_once_what_ran():
    ran = {"backend": "openvino", "detail": "CPU bf16, 1 stream", "compile": None, "added_ms": 0.1}
    row = {"row": "hybrid-rt bf16", "ran": ran, "file_bytes": 225_600_000}
    lines = what_ran([row, row])
    assert len(lines) == 3
    assert lines[-1].split(maxsplit=2)[2] == (
        "backend openvino, detail CPU bf16, 1 stream, file 226 MB"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_name(), reason="PyTorch finds no NVIDIA GPU")
@pytest.mark.parametrize("dtype", CUDA_TYPES)
def test_a_gpu_s_rates_are_measured(dtype):
    assert matmul_rate(dtype, device="cuda", sizes=(256,), seconds=0.05) > 1e8
    assert copy_bandwidth(device="cuda", megabytes=8, seconds=0.05) > 1e8
