"""Plans from NVIDIA's own parser and builder: TensorRT for RTX, which needs no GPU to build."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from factories.typed_onnx import write_typed_onnx
from fakes.cuda import FakeCuda
from hybrid_export.artifacts.tensorrt import why_no_engine
from hybrid_export.onnx_graph.dtype_report import check_dtype_report, graph_dtype_report
from hybrid_export.options import ExportOptions
from hybrid_rt.cuda import CudaDevice
from hybrid_rt.errors import (
    BackendError,
    BackendMissingError,
    DeviceError,
    ModelFileError,
    UsageError,
)
from hybrid_rt.tensorrt.builder import build_engine as builder
from hybrid_rt.tensorrt.library import TensorRTLibrary, compute_capability_text, installed_libraries

ROOT = Path(__file__).parents[3]

needs_rtx = pytest.mark.skipif(
    "tensorrt_rtx" not in installed_libraries(),
    reason="needs TensorRT for RTX: pip install -r requirements/no-deps.txt",
)


@needs_rtx
@pytest.mark.parametrize("targets", [["SM89"], ["SM120", "8.6"]])
def test_an_fp16_plan_ahead_of_time(tmp_path, targets):
    onnx = write_typed_onnx(tmp_path / "model.fp16.onnx")
    seen = []
    built = builder.build_engine(
        onnx,
        tmp_path / "model.plan",
        compute_capabilities=targets,
        max_batch=4,
        progress=lambda fraction, phase: seen.append(fraction),
        log_path=tmp_path / "build.log",
    )
    assert built.path.read_bytes()[:4] == b"vtrt"
    assert built.built_for == {
        "library": "tensorrt_rtx",
        "version": built.built_for["version"],
        "compute_capability": {"SM89": "8.9", "SM120": "8.6,12.0"}[targets[0]],
        "max_batch": 4,
        "hardware_compatible": False,
        "version_compatible": False,
    }
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] == 1
    assert len(seen) > 5
    assert "Engine generation completed" in (tmp_path / "build.log").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "build.log",
        "model.fp16.onnx",
        "model.plan",
    ]


@needs_rtx
@pytest.mark.parametrize(("dtype", "precision"), [(np.float16, "fp16"), (np.float32, "fp32")])
def test_the_dtype_report_of_the_plan_is_that_of_the_graph(tmp_path, dtype, precision):
    onnx = write_typed_onnx(tmp_path / "model.onnx", dtype)
    built = builder.build_engine(onnx, tmp_path / "model.plan", compute_capabilities=["SM89"])
    assert built.dtype_report["measured_on"] == "tensorrt network"
    of_graph = graph_dtype_report(onnx)
    for key in ("weight_bytes", "weight_share", "layers"):
        assert built.dtype_report[key] == of_graph[key]
    check_dtype_report(built.dtype_report, precision, name="model.plan")


@needs_rtx
def test_the_hybrids_own_graph_builds_beside_torch(tiny_onnx, tmp_path):
    import torch

    assert torch.__version__
    built = builder.build_engine(tiny_onnx, tmp_path / "model.plan", compute_capabilities=["SM89"])
    assert built.path.stat().st_size > 10_000
    assert set(built.dtype_report["weight_share"]) == {"float32"}
    assert built.dtype_report["layers"]["convolution"]["float32"] > 5


@needs_rtx
def test_torch_and_tensorrt_rtx_load_in_one_process(tmp_path):
    onnx = write_typed_onnx(tmp_path / "model.onnx")
    code = f"""
import torch
from hybrid_rt.tensorrt.builder.config import BuildRequest
from hybrid_rt.tensorrt.builder.worker import build
from hybrid_rt.tensorrt.library import load_tensorrt
request = BuildRequest(onnx_path={str(onnx)!r}, plan_path={str(tmp_path / "model.plan")!r},
                       library="tensorrt_rtx", compute_capabilities=["8.9"])
build(request, load_tensorrt("tensorrt_rtx"), lambda event: None)
print(torch.ones(2).sum().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2.0"
    assert (tmp_path / "model.plan").stat().st_size > 10_000


@needs_rtx
def test_the_recorded_classes_are_those_installed():
    """The fakes of the other tests stand on tests/assets/tensorrt_api.json."""
    from fakes.tensorrt import API
    from hybrid_rt.tensorrt.library import load_tensorrt

    module = load_tensorrt("tensorrt_rtx").module
    if module.__version__ != API["rtx"]["version"]:
        pytest.skip(f"recorded from {API['rtx']['version']}, installed {module.__version__}")
    for name, members in API["rtx"]["classes"].items():
        missing = [m for m in members if not hasattr(getattr(module, name), m)]
        assert not missing, name
    for name, values in API["rtx"]["enumerations"].items():
        assert {k: int(v) for k, v in getattr(module, name).__members__.items()} == values


@needs_rtx
def test_a_refused_graph_names_the_node_and_leaves_nothing(tmp_path):
    onnx = write_typed_onnx(tmp_path / "model.onnx", unknown_operator=True)
    with pytest.raises(ModelFileError, match=r"parser refuses .*weird_one.*Weird"):
        builder.build_engine(onnx, tmp_path / "out" / "model.plan", compute_capabilities=["SM89"])
    assert list((tmp_path / "out").iterdir()) == []


@needs_rtx
def test_junk_is_refused(tmp_path):
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"\xff" * 1000)
    with pytest.raises(ModelFileError, match="parser refuses"):
        builder.build_engine(onnx, tmp_path / "model.plan", compute_capabilities=["SM89"])


@needs_rtx
def test_an_interrupted_build_ends_the_worker_and_leaves_the_old_plan(tmp_path):
    onnx = write_typed_onnx(tmp_path / "model.onnx")
    path = tmp_path / "model.plan"
    path.write_bytes(b"old")

    def interrupt(fraction, phase):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builder.build_engine(onnx, path, compute_capabilities=["SM89"], progress=interrupt)
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.plan"]


@needs_rtx
def test_a_gpu_that_tensorrt_rtx_does_not_know(tmp_path):
    onnx = write_typed_onnx(tmp_path / "model.onnx")
    with pytest.raises(
        UsageError, match=r"cannot build for compute capability 9\.0; expected one of"
    ):
        builder.build_engine(onnx, tmp_path / "model.plan", compute_capabilities=["SM90"])


@pytest.mark.parametrize("died_at_once", [False, True])
def test_a_worker_that_dies_is_an_error_with_the_signal(tmp_path, monkeypatch, died_at_once):
    onnx = write_typed_onnx(tmp_path / "model.onnx")
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho terminating inside TensorRT >&2\nkill -SEGV $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(builder, "installed_libraries", lambda: ("tensorrt_rtx",))
    if died_at_once:  # before its request is written
        start = subprocess.Popen

        def start_and_wait(*args, **kwargs):
            worker = start(*args, **kwargs)
            worker.wait(60)
            return worker

        monkeypatch.setattr(builder.subprocess, "Popen", start_and_wait)
    with pytest.raises(BackendError, match=r"ended with SIGSEGV.*terminating inside TensorRT"):
        builder.build_engine(
            onnx,
            tmp_path / "model.plan",
            compute_capabilities=["SM89"],
            log_path=tmp_path / "build.log",
        )
    assert not (tmp_path / "model.plan").exists()
    assert "terminating" in (tmp_path / "build.log").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch is 0; expected 1 to 4096"),
        ({"max_batch": 4, "opt_batch": 5}, "opt_batch is 5; expected 1 to max_batch, 4"),
        ({"workspace_bytes": -1}, "workspace_bytes is -1"),
        ({"compute_capabilities": ["ADA"]}, "'ADA'; expected a form such as SM89 or 8.9"),
        ({"compute_capabilities": ["SM89"], "library": "tensorrt"}, "needs library='tensorrt_rtx'"),
        ({"library": "trt"}, "expected auto, tensorrt or tensorrt_rtx"),
        (
            {"compute_capabilities": ["SM89"], "hardware_compatible": True},
            "hardware_compatible does not apply to TensorRT-RTX",
        ),
    ],
)
def test_options_that_do_not_fit(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(builder, "installed_libraries", lambda: ("tensorrt", "tensorrt_rtx"))
    onnx = write_typed_onnx(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=message):
        builder.build_engine(onnx, tmp_path / "model.plan", **options)


def test_a_missing_graph(tmp_path):
    with pytest.raises(ModelFileError, match=r"gone\.onnx is not a file"):
        builder.build_engine(tmp_path / "gone.onnx", tmp_path / "model.plan")


def test_why_no_engine(tmp_path, monkeypatch):
    def no_library(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", no_library)
    monkeypatch.setattr(builder, "installed_libraries", lambda: ())
    assert "pip install 'tensorrt-cu13<12'" in (builder.why_no_engine() or "")
    assert "tensorrt-rtx-cu13-bindings" in (builder.why_no_engine(ahead_of_time=True) or "")
    onnx = write_typed_onnx(tmp_path / "model.onnx")
    with pytest.raises(BackendMissingError, match="TensorRT is not installed"):
        builder.build_engine(onnx, tmp_path / "model.plan")
    monkeypatch.setattr(builder, "installed_libraries", lambda: ("tensorrt",))
    reason = builder.why_no_engine()
    assert reason is not None
    assert "no NVIDIA driver here" in reason
    assert "--tensorrt-rtx SM89" in reason
    assert "\n" not in reason
    with pytest.raises(DeviceError, match="no NVIDIA driver here"):
        builder.build_engine(onnx, tmp_path / "model.plan")


def fake_gpu(monkeypatch, compute_capability, known=("SM89", "SM120")):
    """One GPU, and TensorRT for RTX that knows some generations."""
    device = CudaDevice(0, "NVIDIA Fake", compute_capability, 2**34)
    members = {name: index for index, name in enumerate(known)}
    module = SimpleNamespace(
        __version__="1.7.1",
        BuilderFlag=object,
        ComputeCapability=SimpleNamespace(__members__={**members, "CURRENT": 9}),
    )
    monkeypatch.setattr(builder, "driver_problem", lambda: None)
    monkeypatch.setattr(builder, "cuda_device", lambda *_: device)
    monkeypatch.setattr(builder, "installed_libraries", lambda: ("tensorrt_rtx",))
    monkeypatch.setattr(
        builder, "load_tensorrt", lambda name: TensorRTLibrary("tensorrt_rtx", module)
    )


def test_tensorrt_rtx_on_a_gpu_that_it_does_not_know(monkeypatch):
    fake_gpu(monkeypatch, "9.0")
    reason = builder.why_no_engine() or ""
    assert reason.startswith("TensorRT-RTX 1.7.1 cannot build for cuda:0 (NVIDIA Fake, compute")
    assert "expected one of 8.9, 12.0: use TensorRT on this GPU, pip install 'tensorrt" in reason
    fake_gpu(monkeypatch, "12.0")
    assert builder.why_no_engine() is None


def test_a_plan_for_this_machine_needs_a_cuda_library(monkeypatch):
    fake_gpu(monkeypatch, "8.9")
    for name in ("pycuda.driver", "cuda.bindings.driver", "cuda.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "needs cuda-bindings or PyCUDA" in (why_no_engine(ExportOptions(fp16=True)) or "")
    with pytest.raises(BackendMissingError, match=r"pip install 'hybrid-rt\[gpu\]'"):
        why_no_engine(ExportOptions(fp16=True, plans="tensorrt_rtx"))
    fake = FakeCuda()
    for name, module in (("cuda.bindings.driver", fake.bindings), ("pycuda.driver", fake.driver)):
        monkeypatch.setitem(sys.modules, name, module)
        assert why_no_engine(ExportOptions(fp16=True)) is None, name
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("text", ["8.9", "SM89", "sm_89", "89", " sm89 "])
def test_compute_capability_text(text):
    assert compute_capability_text(text) == "8.9"


def test_compute_capability_of_two_digits():
    assert compute_capability_text("SM120") == "12.0"
