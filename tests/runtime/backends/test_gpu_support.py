"""A GPU whose libraries are missing: "auto" says so and takes the CPU, "cuda:0" is an error."""

import importlib.machinery
import logging
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from fakes.cuda import FakeLibcuda
from fakes.machine import FakeMachine
from fakes.onnxruntime import FakeOnnxRuntime
from hybrid_rt import BackendMissingError, DeviceError, HybridEngine
from hybrid_rt.backends import gpu_support
from hybrid_rt.backends.gpu_support import onnxruntime_gpu_problem, tensorrt_support
from hybrid_rt.bundle.manifest import BuiltFor, Bundle, describe_file


@pytest.fixture
def machine(monkeypatch):
    """A machine with a fake GPU, driver and TensorRT 10.3."""
    return FakeMachine(monkeypatch, "10.3")


@pytest.fixture
def without_cuda(machine, monkeypatch):
    """The CPU build of onnxruntime."""
    return FakeOnnxRuntime(monkeypatch, providers=("Azure", "CPU"))


@pytest.fixture
def broken(machine, monkeypatch):
    """onnxruntime-gpu without its CUDA libraries."""
    return FakeOnnxRuntime(monkeypatch, cuda_works=False)


@pytest.fixture
def add_plan(with_files, machine):
    def add(folder):
        with_files(folder, fp16=("fp16", True))
        path = folder / "model.plan"
        path.write_bytes(b"plan")
        built_for = BuiltFor(
            library="tensorrt",
            version=machine.trt.__version__,
            compute_capability="8.9",
            max_batch=8,
        )
        entry = describe_file(path, precision="fp16", built_for=built_for, source="model.fp16.onnx")
        bundle = Bundle.load(folder).with_file(path.name, entry)
        Bundle(spec=bundle.spec, files=bundle.files, golden=bundle.golden).save(folder)

    return add


def hide_tensorrt(monkeypatch):
    modules = {"tensorrt": (), "tensorrt_rtx": ()}
    monkeypatch.setattr("hybrid_rt.tensorrt.library._MODULES", modules)


def hide_memory(monkeypatch):
    for name in ("pycuda.driver", "cuda.bindings.driver", "cuda.cuda"):
        monkeypatch.setitem(sys.modules, name, None)


def warnings(caplog):
    return [r.message for r in caplog.records if r.levelno == logging.WARNING]


def test_the_probe_is_the_file_that_it_says():
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "ab"]
    node = helper.make_node("Identity", ["a"], ["b"])
    graph = helper.make_graph([node], "probe", value[:1], value[1:])
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.checker.check_model(onnx.load_from_string(gpu_support._IDENTITY))
    assert model.SerializeToString() == gpu_support._IDENTITY


def test_libraries_are_loaded_before_the_first_session(machine, monkeypatch, tiny_onnx, capsys):
    runtime = FakeOnnxRuntime(monkeypatch)
    with HybridEngine(tiny_onnx) as engine:
        assert engine.info["device"] == "cuda:0"
        assert engine.info["reason"] == "named by the caller, no bundle"
    assert runtime.calls[0] == "preload"
    assert runtime.calls.count("preload") == 1
    assert runtime.calls[1] == ["CUDAExecutionProvider"]
    assert capsys.readouterr().out == "", "the predictions of hybrid-predict go there"


def test_an_explicit_gpu_loads_the_libraries_too(machine, monkeypatch, tiny_onnx):
    runtime = FakeOnnxRuntime(monkeypatch)
    HybridEngine(tiny_onnx, device="cuda:0").close()
    assert runtime.calls == ["preload", ["CUDAExecutionProvider", "CPUExecutionProvider"]]


def test_onnxruntime_without_preload_dlls(machine, monkeypatch, tiny_onnx):
    FakeOnnxRuntime(monkeypatch, preload=False)
    with HybridEngine(tiny_onnx, device="cuda:0") as engine:
        assert engine.info["detail"] == "CUDAExecutionProvider"


def test_the_cpu_loads_no_cuda_libraries(machine, monkeypatch, tiny_onnx):
    runtime = FakeOnnxRuntime(monkeypatch)
    HybridEngine(tiny_onnx, device="cpu", backend="onnxruntime").close()
    assert runtime.calls == [["CPUExecutionProvider"]]


def test_auto_without_cuda_libraries_warns_once(broken, tiny_onnx, images, caplog):
    for _ in range(2):
        with HybridEngine(tiny_onnx) as engine:
            assert engine.info["device"] == "cpu"
            reason = engine.info["reason"]
            assert "cuda:0 (Fake GPU, compute capability 8.9) is not used: onnxruntime" in reason
            assert "pip install 'hybrid-rt[gpu]'" in reason
            assert engine.predict(images[0]).label in engine.spec.classes
    (message,) = warnings(caplog)
    assert message in reason


def test_auto_with_the_cpu_build_of_onnxruntime(without_cuda, tiny_onnx, caplog):
    with HybridEngine(tiny_onnx) as engine:
        assert engine.info["device"] == "cpu"
    (message,) = warnings(caplog)
    assert "has AzureExecutionProvider, CPUExecutionProvider only" in message
    assert "pip uninstall onnxruntime && pip install 'hybrid-rt[gpu]'" in message


def test_an_explicit_gpu_without_cuda_libraries(broken, tiny_onnx):
    with pytest.raises(DeviceError, match=r"does not load its CUDA provider.*hybrid-rt\[gpu\]'"):
        HybridEngine(tiny_onnx, device="cuda:0")


def test_an_explicit_gpu_with_the_cpu_build(without_cuda, tiny_onnx):
    with pytest.raises(DeviceError, match=r"needs CUDAExecutionProvider.*hybrid-rt\[gpu\]'"):
        HybridEngine(tiny_onnx, device="cuda:0")


def test_an_explicit_gpu_without_onnxruntime(machine, monkeypatch, tiny_onnx):
    find = importlib.machinery.PathFinder.find_spec

    def hidden(name, *arguments):
        return None if name == "onnxruntime" else find(name, *arguments)

    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", hidden)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert "onnxruntime-gpu is not installed" in onnxruntime_gpu_problem()
    for backend in (None, "onnxruntime"):
        with pytest.raises(BackendMissingError, match=r"pip install 'hybrid-rt\[gpu\]'"):
            HybridEngine(tiny_onnx, device="cuda:0", backend=backend)


def test_cpu_library_by_choice_warns_of_nothing(broken, tiny_onnx, caplog):
    with HybridEngine(tiny_onnx, backend="openvino") as engine:
        assert "not used" not in engine.info["reason"]
    assert warnings(caplog) == []


def test_no_gpu_warns_of_nothing(broken, machine, tiny_onnx, caplog):
    machine.libcuda = FakeLibcuda(devices=())
    with HybridEngine(tiny_onnx) as engine:
        assert engine.info["device"] == "cpu"
        assert "not used" not in engine.info["reason"]
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("hide", "what"),
    [
        (hide_tensorrt, r"TensorRT is not installed; pip install"),
        (hide_memory, r"needs cuda-bindings or PyCUDA.*pip install 'hybrid-rt\[gpu\]'"),
    ],
)
def test_a_bundle_whose_plan_lacks_a_library(
    broken, bundle_folder, add_plan, monkeypatch, caplog, hide, what
):
    add_plan(bundle_folder)
    hide(monkeypatch)
    with HybridEngine(bundle_folder) as engine:
        assert engine.info["device"] == "cpu"
        assert engine.info["path"].endswith(".onnx")
        assert "none runs on cuda:0 (Fake GPU" in engine.info["reason"]
        assert "is not used: onnxruntime" in engine.info["reason"]
        assert warnings(caplog)[-1] in engine.info["reason"]
    with pytest.raises(BackendMissingError, match=what):
        HybridEngine(bundle_folder, device="cuda:0")


def test_a_plan_that_runs_asks_no_onnxruntime(machine, monkeypatch, bundle_folder, add_plan):
    from hybrid_rt.selection import find_model

    runtime = FakeOnnxRuntime(monkeypatch)
    add_plan(bundle_folder)
    assert find_model(bundle_folder).path.name == "model.plan"
    assert runtime.calls == [], "CUDA libraries were loaded for nothing"
    hide_tensorrt(monkeypatch)
    assert find_model(bundle_folder).path.name == "model.fp16.onnx"


def test_tensorrt_that_does_not_load(machine, monkeypatch, tmp_path):
    (tmp_path / "broken_trt.py").write_text("raise ImportError('libnvinfer.so.10')")
    monkeypatch.syspath_prepend(tmp_path)
    modules = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("broken_trt",)}
    monkeypatch.setattr("hybrid_rt.tensorrt.library._MODULES", modules)
    versions, problem = tensorrt_support()
    assert versions == {"tensorrt": machine.trt.__version__}
    assert "libnvinfer.so.10" in problem


def test_a_session_that_cannot_be_made(machine, monkeypatch, tiny_onnx):
    runtime = FakeOnnxRuntime(monkeypatch)

    def fail(*arguments, **options):
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(runtime, "InferenceSession", fail)
    assert "cannot use the GPU: CUDA failure 2" in onnxruntime_gpu_problem()
