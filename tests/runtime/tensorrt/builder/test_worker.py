"""The builder's calls, on the classes of each TensorRT as recorded from NVIDIA's bindings."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from factories.typed_onnx import write_typed_onnx
from fakes.machine import FakeMachine
from fakes.tensorrt import API, VERSIONS, fake_tensorrt
from hybrid_export.onnx_graph.dtype_report import graph_dtype_report
from hybrid_rt.errors import BackendError, DeviceError, ModelFileError, UsageError
from hybrid_rt.tensorrt.builder.config import BuildRequest
from hybrid_rt.tensorrt.builder.layer_types import engine_layers
from hybrid_rt.tensorrt.builder.worker import build
from hybrid_rt.tensorrt.library import TensorRTLibrary, load_tensorrt


@pytest.fixture(params=VERSIONS)
def machine(request, monkeypatch):
    machine = FakeMachine(monkeypatch, request.param)
    machine.version = request.param
    return machine


@pytest.fixture
def machine86(monkeypatch):
    return FakeMachine(monkeypatch, "8.6")


def build_on(machine, tmp_path, *, dtype=np.float16, graph=None, **options):
    """Build; return the result, what the builder was asked for, and the events."""
    onnx_path = write_typed_onnx(tmp_path / "model.onnx", dtype, **(graph or {}))
    request = BuildRequest(
        onnx_path=str(onnx_path),
        plan_path=str(tmp_path / "model.plan"),
        library=machine.library,
        **options,
    )
    events = []
    result = build(request, load_tensorrt(machine.library), events.append)
    return result, machine.trt.built[-1], events


def test_every_version_builds(machine, tmp_path):
    result, built, events = build_on(machine, tmp_path, workspace_bytes=1 << 28)
    assert result["built_for"] == {
        "library": machine.library,
        "version": API[machine.version]["version"],
        "compute_capability": "8.9",
        "max_batch": 8,
        "hardware_compatible": False,
        "version_compatible": False,
    }
    assert (tmp_path / "model.plan").stat().st_size > 0
    assert built.memory_pools == {"WORKSPACE": 1 << 28}
    assert built.cleared_flags == ["TF32"], "FP32 in the graph has to mean FP32"
    assert built.config.max_aux_streams == 1
    shapes = ((1, 32, 32, 3), (8, 32, 32, 3), (8, 32, 32, 3))
    assert built.profiles == [{"images": shapes}]
    assert events[-1] == {"progress": 1.0, "phase": "done"}
    assert any(0 < e.get("progress", 0) < 1 for e in events) == (machine.version != "8.6")
    assert machine.cuda.stack == []
    assert built.compute_capabilities == ({0: "CURRENT"} if machine.version == "rtx" else {})
    if machine.version == "8.6":
        assert built.network_flags == 1, "expected EXPLICIT_BATCH"
        assert built.flags == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
        assert built.preview_features == {"PROFILE_SHARING_0806": True}
    else:
        assert built.network_flags == (2 if machine.version.startswith("10") else 0)
        assert built.flags == []


def test_86_gets_the_types_of_the_graph(machine86, tmp_path):
    _, built, _ = build_on(machine86, tmp_path)
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "model.onnx")).graph
    values = [*model.value_info, *model.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    names = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}
    precisions = {}
    for node in model.node:
        layer = built.layers[node.name]
        if node.op_type == "Cast":
            assert layer.precision is None
            continue
        precisions[node.op_type] = layer.precision.name
        assert layer.precision.name == names[types[node.output[0]]], node.name
        assert layer.get_output_type(0).name == layer.precision.name
    assert precisions["ReduceMean"] == precisions["Softmax"] == precisions["Mul"] == "FLOAT"
    assert precisions["Conv"] == precisions["MatMul"] == precisions["LayerNormalization"] == "HALF"


def test_86_with_fp32_graph_sets_no_lower_precision(machine86, tmp_path):
    _, built, _ = build_on(machine86, tmp_path, dtype=np.float32)
    assert built.flags == ["OBEY_PRECISION_CONSTRAINTS"]


def test_86_leaves_quantized_layers_unconstrained(machine86, tmp_path):
    from onnx import TensorProto, helper, numpy_helper

    path = write_typed_onnx(tmp_path / "source.onnx", np.float32)
    model = onnx.load(path)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(0.02), "step"))
    graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero"))
    conv = next(i for i, node in enumerate(graph.node) if node.op_type == "Conv")
    graph.node[conv].input[0] = "restored"
    quantize = helper.make_node("QuantizeLinear", ["half", "step", "zero"], ["q"], name="q")
    restore = helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["restored"], name="dq")
    graph.node.insert(conv, quantize)
    graph.node.insert(conv + 1, restore)
    assert TensorProto.INT8 == 3
    onnx.save(model, tmp_path / "model.onnx")
    request = BuildRequest(
        onnx_path=str(tmp_path / "model.onnx"),
        plan_path=str(tmp_path / "model.plan"),
        library="tensorrt",
    )
    result = build(request, load_tensorrt("tensorrt"), lambda event: None)
    built = machine86.trt.built[-1]
    assert built.flags == ["INT8", "OBEY_PRECISION_CONSTRAINTS"]
    assert built.layers["conv"].precision is None
    assert built.layers["head"].precision.name == "FLOAT"
    assert result["dtype_report"]["layers"]["convolution"] == {"int8": 1}


def test_dtype_report_is_that_of_the_graph(machine, tmp_path):
    result, *_ = build_on(machine, tmp_path)
    of_graph = graph_dtype_report(tmp_path / "model.onnx")
    for key in ("weight_bytes", "weight_share", "layers"):
        assert result["dtype_report"][key] == of_graph[key], key
    assert result["dtype_report"]["engine"] == {
        "layers": {"float16": 2, "float32": 1},
        "weights": {"float16": 768},
    }
    assert result["dtype_report"]["weight_share"]["float16"] > 0.99


@pytest.mark.parametrize("text", ["", "not JSON", "[]", '{"Layers": ["name only"]}', "{}"])
def test_engine_layers_without_layers_is_none(text):
    assert engine_layers(text) is None


def test_options_reach_the_configuration(monkeypatch, tmp_path):
    machine = FakeMachine(monkeypatch, "10.3")
    result, built, _ = build_on(
        machine, tmp_path, version_compatible=True, hardware_compatible=True, max_batch=4,
        opt_batch=2,
    )  # fmt: skip
    assert built.flags == ["VERSION_COMPATIBLE"]
    assert built.config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert built.profiles[0]["images"][1][0] == 2
    assert result["built_for"]["max_batch"] == 4
    assert result["built_for"]["version_compatible"]


def test_fixed_batch_needs_no_profile(monkeypatch, tmp_path):
    machine = FakeMachine(monkeypatch, "11.4")
    result, built, _ = build_on(machine, tmp_path, graph={"batch": 3})
    assert built.profiles == []
    assert result["built_for"]["max_batch"] == 3


def test_timing_cache_is_read_extended_and_replaced(monkeypatch, tmp_path):
    machine = FakeMachine(monkeypatch, "10.16")
    cache = tmp_path / "cache" / "timing.bin"
    build_on(machine, tmp_path, timing_cache=str(cache))
    assert cache.read_bytes() == b"+"
    build_on(machine, tmp_path, timing_cache=str(cache))
    assert cache.read_bytes() == b"++"
    cache.write_bytes(b"other GPU")
    *_, events = build_on(machine, tmp_path, timing_cache=str(cache))
    assert cache.read_bytes() == b"+"
    assert any("another GPU" in e["log"][1] for e in events if "log" in e)


def test_rtx_targets(monkeypatch, tmp_path):
    machine = FakeMachine(monkeypatch, "rtx", devices=())
    result, built, _ = build_on(machine, tmp_path, compute_capabilities=["8.9", "12.0"])
    assert built.compute_capabilities == {0: "SM89", 1: "SM120"}
    assert result["built_for"]["compute_capability"] == "8.9,12.0"
    with pytest.raises(
        UsageError, match=r"capability 9\.0; expected one of 7\.5, 8\.0, 8\.6, 8\.9"
    ):
        build_on(machine, tmp_path, compute_capabilities=["9.0"])


def test_rtx_on_an_unknown_gpu_raises(monkeypatch, tmp_path):
    machine = FakeMachine(monkeypatch, "rtx", devices=(("H200", 9, 0),))
    with pytest.raises(DeviceError, match=r"cannot build for cuda:0 \(H200.*use TensorRT"):
        build_on(machine, tmp_path)


def test_refused_graph_raises_and_names_the_node(machine, tmp_path):
    with pytest.raises(ModelFileError, match=r"parser refuses .*node .*: no importer registered"):
        build_on(machine, tmp_path, graph={"unknown_operator": True})
    assert not (tmp_path / "model.plan").exists()


def test_failed_build_raises_with_tensorrts_error(machine, tmp_path):
    machine.trt.build_fails = True
    with pytest.raises(BackendError, match="could not find any implementation"):
        build_on(machine, tmp_path)


def test_86_with_opset_18_raises(machine86, tmp_path):
    with pytest.raises(ModelFileError, match=r"is opset 18; TensorRT 8\.6\.1 reads 17 at most"):
        build_on(machine86, tmp_path, graph={"opset": 18})


def test_86_with_bfloat16_raises(machine86):
    def parse(trt, network, path):
        images = network.add_input("images", trt.DataType.UINT8, [-1, 32, 32, 3])
        network.add_cast(images, SimpleNamespace(name="BF16"))
        return True

    library = TensorRTLibrary("tensorrt", fake_tensorrt("8.6", machine86.cuda, parse=parse))
    request = BuildRequest(onnx_path="unused", plan_path="unused", library="tensorrt")
    with pytest.raises(BackendError, match=r"8\.6\.1 cannot run bfloat16; use the FP16"):
        build(request, library, lambda event: None)
