"""The driver's return codes, PyCUDA's and cuda-bindings' names, and loading TensorRT."""

import ctypes
import dataclasses
import gc
import inspect
import sys
import threading
import types

import numpy as np
import pytest

import hybrid_rt.cuda.memory
from fakes.cuda import FakeCuda, FakeLibcuda
from fakes.machine import PROVIDERS
from fakes.tensorrt import API
from hybrid_rt.cuda import (
    CudaGraph,
    cuda_device,
    cuda_devices,
    driver_problem,
    load_bindings,
    open_gpu,
    parse_device,
    provider_problem,
)
from hybrid_rt.errors import BackendError, BackendMissingError, DeviceError, UsageError
from hybrid_rt.tensorrt import library
from hybrid_rt.tensorrt.library import load_tensorrt


def put_driver(monkeypatch, libcuda):
    def load(name):
        assert name == "libcuda.so.1"
        if isinstance(libcuda, OSError):
            raise libcuda
        return libcuda

    monkeypatch.setattr(ctypes, "CDLL", load)


def test_devices_as_the_driver_names_them(monkeypatch):
    put_driver(monkeypatch, FakeLibcuda([("RTX 4090", 8, 9), ("H200", 9, 0)]))
    first, second = cuda_devices()
    assert str(first) == "cuda:0 (RTX 4090, compute capability 8.9)"
    assert second.compute_capability == "9.0"
    assert second.memory_bytes == 16 << 30
    assert cuda_device("cuda") == cuda_device("auto") == cuda_device("cuda:0") == first
    assert cuda_device("cuda:1") == second
    with pytest.raises(DeviceError, match=r"'cuda:2'; this machine has cuda:0 \(RTX 4090"):
        cuda_device("cuda:2")
    assert driver_problem() is None


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "cuda:²", "cpu:0", 0])
def test_other_names(monkeypatch, name):
    put_driver(monkeypatch, FakeLibcuda())
    with pytest.raises(UsageError, match="expected auto, cuda or cuda:N"):
        cuda_device(name)
    with pytest.raises(UsageError, match="expected 'auto', 'cpu', 'cuda' or 'cuda:0'"):
        parse_device(name)


def test_device_argument(monkeypatch):
    put_driver(monkeypatch, FakeLibcuda([("RTX 4090", 8, 9), ("H200", 9, 0)]))
    assert [parse_device(t) for t in ("auto", "cpu", "cuda", "cuda:1")] == [
        *(("auto", 0), ("cpu", 0), ("cuda", 0), ("cuda", 1))
    ]
    with pytest.raises(UsageError, match="'cpu'; expected auto, cuda or cuda:N for a TensorRT"):
        cuda_device("cpu")
    with pytest.raises(DeviceError, match=r"'cuda:2' was asked for: .*or use device='cpu'"):
        parse_device("cuda:2")


def test_no_driver(monkeypatch):
    put_driver(monkeypatch, OSError("no such file"))
    with pytest.raises(DeviceError, match=r"no NVIDIA driver here .*--gpus all"):
        cuda_devices()
    assert "no NVIDIA driver" in (driver_problem() or "")


@pytest.mark.parametrize(
    "libcuda", [FakeLibcuda([]), FakeLibcuda(init_status=100)], ids=["count 0", "NO_DEVICE"]
)
def test_no_device(monkeypatch, libcuda):
    put_driver(monkeypatch, libcuda)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(DeviceError, match=r"sees no GPU \(CUDA_VISIBLE_DEVICES is '7'\)"):
        cuda_devices()


def test_a_driver_that_does_not_start(monkeypatch):
    put_driver(monkeypatch, FakeLibcuda(init_status=3))
    with pytest.raises(DeviceError, match=r"CUDA error 3, initialization error.*use spawn"):
        cuda_devices()


@pytest.fixture(params=PROVIDERS)
def gpu(request, monkeypatch):
    """A Gpu and the FakeCuda behind it, through each provider."""
    cuda = FakeCuda()
    put_driver(monkeypatch, FakeLibcuda())
    device = cuda_device()
    monkeypatch.undo()
    pycuda = cuda.driver if request.param == "PyCUDA" else None  # None does not import
    monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", cuda.bindings)
    monkeypatch.setattr(hybrid_rt.cuda.memory, "_opened", {})
    gpu = open_gpu(device)
    assert gpu.provider.name == request.param
    return gpu, cuda


def test_one_primary_context_for_all(gpu):
    gpu, cuda = gpu
    assert open_gpu(gpu.device) is gpu
    assert cuda.retained == 1
    with gpu.active():
        assert len(cuda.stack) == 1
        with gpu.active():
            assert len(cuda.stack) == 2
    assert cuda.stack == []


def test_nothing_stays_current_after_an_error(gpu):
    gpu, cuda = gpu
    cuda.memory_bytes = 10
    with (
        pytest.raises(BackendError, match=r"CUDA on cuda:0 \(Fake GPU.*out of memory; another"),
        gpu.active(),
    ):
        gpu.allocate(11)
    assert cuda.stack == []
    with pytest.raises(ZeroDivisionError), gpu.active():
        1 / 0  # noqa: B018
    assert cuda.stack == []


def test_error_at_an_address_is_not_out_of_memory(gpu):
    gpu, _ = gpu
    with gpu.active():
        array, stream = gpu.pinned((4,), np.uint8), gpu.stream()
    with pytest.raises(BackendError, match="invalid") as error, gpu.active():
        gpu.copy_to_device(12345, array, stream)
    assert "--max-batch" not in str(error.value)


def test_copies_and_graphs(gpu):
    gpu, cuda = gpu
    with gpu.active():
        stream, memory = gpu.stream(), gpu.allocate(16)
        source, target = gpu.pinned((2, 2), np.float32), gpu.pinned((4,), np.float32)
        source[:], target[:] = [[1, 2], [3, 4]], 0

        def work():
            gpu.copy_to_device(int(memory), source, stream)
            gpu.copy_to_host(target, int(memory), stream)

        graph = CudaGraph.record(cuda.bindings, stream.handle, work)
        assert target.tolist() == [0, 0, 0, 0], "recording ran the work"
        graph.launch(stream.handle)
        stream.synchronize()
        assert target.tolist() == [1, 2, 3, 4]
        graph.close()
        graph.close()
        memory.free()
        memory.free()
        stream.free()
        stream.free()
    source = target = work = None
    assert sum(cuda.counts().values()) == 0


def test_forgotten_things_are_freed_from_any_thread(gpu):
    gpu, cuda = gpu
    with gpu.active():
        things = [gpu.stream(), gpu.allocate(16), gpu.pinned((4,), np.uint8)]
    view = things[2][1:3]
    thread = threading.Thread(target=things.clear)
    thread.start()
    thread.join()
    assert cuda.counts() == {"device": 0, "pinned": 1, "streams": 0, "graphs": 0}
    view[:] = 5  # a view keeps page-locked memory
    del view
    assert sum(cuda.counts().values()) == 0
    assert cuda.stack == []


def test_after_a_reset_frees_do_nothing(gpu):
    gpu, cuda = gpu
    with gpu.active():
        stream, memory, array = gpu.stream(), gpu.allocate(16), gpu.pinned((4,), np.uint8)
    before = cuda.counts()
    cuda.was_reset = True
    memory.free()
    stream.free()
    del array
    assert cuda.counts() == before


def test_an_allocation_of_nothing_has_an_address(gpu):
    gpu, _ = gpu
    with gpu.active():
        assert int(gpu.allocate(0)) > 0
        assert gpu.pinned((0, 3), np.float32).shape == (0, 3)


def test_a_failed_recording_returns_the_stream(gpu):
    gpu, cuda = gpu

    def work():
        raise BackendError("no")

    with gpu.active():
        stream = gpu.stream()
        with pytest.raises(BackendError, match="no"):
            CudaGraph.record(cuda.bindings, stream.handle, work)
        stream.synchronize()
        cuda.capture_fails = True
        with pytest.raises(BackendError, match="cannot record a CUDA graph: CUDA_ERROR_STREAM"):
            CudaGraph.record(cuda.bindings, stream.handle, lambda: None)
        stream.synchronize()
    assert gc.isenabled()


def test_a_recording_holds_the_garbage_collector_back(gpu):
    gpu, cuda = gpu

    class Forgotten:
        pass

    def work():
        for _ in range(1000):  # more than the collector waits for
            forgotten.append([forgotten])

    with gpu.active():
        stream, threshold, forgotten = gpu.stream(), gc.get_threshold(), []
        gc.collect()
        cycle = Forgotten()  # young, so that the next collection finds it
        cycle.itself, cycle.memory = cycle, gpu.allocate(16)
        del cycle
        try:
            gc.set_threshold(50, 1, 1)
            CudaGraph.record(cuda.bindings, stream.handle, work).close()
        finally:
            gc.set_threshold(*threshold)
    gc.collect()
    assert cuda.counts()["device"] == 0


def test_neither_provider_imports(gpu, monkeypatch):
    assert provider_problem() is None
    for name in ("pycuda.driver", "cuda.bindings.driver", "cuda.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(hybrid_rt.cuda.memory, "_opened", {})
    with pytest.raises(BackendMissingError, match=r"pip install 'hybrid-rt\[gpu\]', whose cuda-b"):
        open_gpu(gpu[0].device)
    assert "neither imports" in (provider_problem() or "")


def test_broken_pycuda_is_replaced_by_cuda_bindings(gpu, monkeypatch, tmp_path):
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").write_text("")
    (tmp_path / "pycuda" / "driver.py").write_text("raise ImportError('libcurand.so.11')")
    monkeypatch.delitem(sys.modules, "pycuda.driver")
    monkeypatch.delitem(sys.modules, "pycuda", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hybrid_rt.cuda.memory, "_opened", {})
    assert open_gpu(gpu[0].device).provider.name == "cuda-bindings"


def test_a_context_that_cannot_be_retained(gpu, monkeypatch):
    gpu, _ = gpu
    monkeypatch.setattr(hybrid_rt.cuda.memory, "_opened", {})
    other = dataclasses.replace(gpu.device, index=1)
    with pytest.raises(DeviceError, match=r"cannot use cuda:1 .*invalid device.*nvidia-smi"):
        open_gpu(other)


@pytest.mark.parametrize("gpu", ["cuda-bindings"], indirect=True)
def test_a_call_that_an_old_driver_does_not_have(gpu, monkeypatch):
    gpu, cuda = gpu

    def missing(size):
        raise RuntimeError('Function "cuMemAlloc_v2" not found')

    monkeypatch.setattr(cuda.bindings, "cuMemAlloc", missing)
    with pytest.raises(BackendError, match=r"cuMemAlloc failed: Function.*not found"), gpu.active():
        gpu.allocate(1)


def test_bindings_of_both_names(monkeypatch):
    for name in ("cuda.bindings.driver", "cuda.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    assert load_bindings() is None
    old, new = types.ModuleType("cuda.cuda"), types.ModuleType("cuda.bindings.driver")
    monkeypatch.setitem(sys.modules, "cuda.cuda", old)
    assert load_bindings() is old
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", new)
    assert load_bindings() is new


def test_the_fake_bindings_have_the_real_names():
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for name, value in vars(FakeCuda().bindings).items():
        assert hasattr(real, name), name
        for member in getattr(value, "__members__", {}):
            assert int(getattr(value, member)) == int(getattr(getattr(real, name), member)), member
        if inspect.isfunction(value):
            signature = getattr(real, name).__doc__.splitlines()[0]  # cuMemAlloc(size_t bytesize)
            parameters = signature.partition("(")[2].rstrip(")").split(",")
            count = len([parameter for parameter in parameters if parameter])
            assert len(inspect.signature(value).parameters) == count, signature
    assert real.cuGraphInstantiate.__doc__.startswith(
        "cuGraphInstantiate(hGraph, unsigned long long flags)"
    )


def test_the_fake_pycuda_has_the_real_names():
    recorded = API["pycuda"]
    fake = FakeCuda().driver
    for name, members in recorded["classes"].items():
        own = [m for m in vars(getattr(fake, name)) if not m.startswith("_")]
        unknown = set(own) - set(members) - {"size", "memory", "address"}
        assert not unknown, f"{name} has no {unknown}"
    for name, (parameters,) in recorded["functions"].items():
        assert hasattr(fake, name)
        code = getattr(fake, name).__init__ if name == "mem_alloc" else getattr(fake, name)
        count = code.__code__.co_argcount - (name == "mem_alloc")
        assert count == len(parameters), name


def test_tensorrt_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(library, "_MODULES", {"tensorrt": (), "tensorrt_rtx": ()})
    with pytest.raises(BackendMissingError, match=r"neither tensorrt nor tensorrt_rtx.*<12"):
        load_tensorrt()
    with pytest.raises(BackendMissingError, match="TensorRT-RTX is not installed; pip install"):
        load_tensorrt("tensorrt_rtx")
    with pytest.raises(UsageError, match="expected auto, tensorrt, tensorrt_rtx"):
        load_tensorrt("trt")


def test_tensorrt_that_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "broken_trt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open')")
    (tmp_path / "empty_trt.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for module, message in [
        ("broken_trt", r"does not load: libnvinfer\.so\.10.*for another CUDA"),
        ("empty_trt", "has neither Builder nor Runtime"),
    ]:
        monkeypatch.setattr(library, "_MODULES", {"tensorrt": (module,)})
        with pytest.raises(BackendMissingError, match=message):
            load_tensorrt("tensorrt")
