"""TensorRTSession on fake CUDA and on the classes of each TensorRT, recorded from the real ones."""

import gc
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from factories.tiny_onnx import tiny_spec, write_tiny_onnx
from fakes.machine import PROVIDERS, FakeMachine
from fakes.tensorrt import VERSIONS, expected, plan_bytes
from hybrid_rt import HybridEngine
from hybrid_rt.backends.base import SessionOptions
from hybrid_rt.backends.registry import open_session
from hybrid_rt.backends.tensorrt import MAX_CONTEXTS, open_trt
from hybrid_rt.bundle.manifest import BuiltFor, Bundle, describe_file
from hybrid_rt.cuda import CudaGraph
from hybrid_rt.errors import BackendError, BackendMissingError, DeviceError, ModelFileError
from hybrid_rt.errors import UsageError as BadUsage
from hybrid_rt.tensorrt.engine import OptimizationProfile, cut_batch

SPEC = tiny_spec(size=32)


def images(batch, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, 32, 32, 3), np.uint8)


def check(outputs, batch):
    wanted = expected(batch)
    assert list(outputs) == ["probabilities", "logits", "features"]
    for name, values in outputs.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, wanted[name])


@pytest.fixture(params=PROVIDERS)
def provider(request):
    """Every session test runs on both."""
    return request.param


@pytest.fixture(params=VERSIONS)
def machine(request, monkeypatch, tmp_path, provider):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return FakeMachine(monkeypatch, request.param, provider=provider)


@pytest.fixture
def machine10(monkeypatch, provider):
    return FakeMachine(monkeypatch, "10.3", provider=provider)


def write_plan(machine, folder, **facts):
    path = folder / "model.plan"
    path.write_bytes(plan_bytes(**facts))
    return path


def built_for(machine, **changes):
    facts = {
        "library": machine.library,
        "version": machine.trt.__version__,
        "compute_capability": "8.9",
        "max_batch": 8,
    }
    return BuiltFor(**(facts | changes))


def bundle_of(machine, folder, **changes):
    """A bundle with model.onnx and a plan that says it was built for something."""
    onnx = write_tiny_onnx(folder / "model.onnx", SPEC)
    plan = write_plan(machine, folder)
    entry = describe_file(
        plan, precision="fp32", built_for=built_for(machine, **changes), source="model.onnx"
    )
    files = {"model.onnx": describe_file(onnx, precision="fp32"), "model.plan": entry}
    Bundle(spec=SPEC, files=files).save(folder)
    bundle = Bundle.load(folder)
    return plan, SessionOptions(spec=SPEC, bundle=bundle, entry=bundle.files["model.plan"])


def open_plan(machine, folder, *, graphs=True, plan=None, **options):
    path = write_plan(machine, folder, **(plan or {}))
    if machine.library == "tensorrt_rtx":
        options.setdefault("backend", "tensorrt-rtx")
    return open_trt(path, SessionOptions(spec=SPEC, **options), graphs=graphs)


def test_run_any_batch_size_on_every_version(machine, tmp_path):
    session = open_plan(machine, tmp_path)
    assert session.device == "cuda:0"
    assert machine.trt.__version__ in session.detail
    for batch in (1, 3, 8, 3, 1, 3, 17):
        pixels = images(batch, seed=batch)
        check(session.run(pixels), pixels)
    assert machine.cuda.stack == [], "a context was left current"
    session.close()
    session.close()
    gc.collect()
    assert machine.cuda.counts() == {"device": 0, "pinned": 0, "streams": 0, "graphs": 0}
    with pytest.raises(BackendError, match="closed; open the model again"):
        session.run(images(1))


def test_detail_names_the_memory_provider(machine10, tmp_path, provider):
    session = open_plan(machine10, tmp_path)
    assert f"memory through {provider}, CUDA graphs" in session.detail


def test_session_after_device_reset_raises(machine10, tmp_path):
    session = open_plan(machine10, tmp_path)
    machine10.cuda.was_reset = True
    with pytest.raises(BackendError, match=r"CUDA on cuda:0 \(Fake GPU.*context is destroyed"):
        session.run(images(1))
    session.close()
    del session
    gc.collect()
    assert machine10.cuda.counts()["device"] > 0, "freed on a context that is gone"


def test_session_after_fork_is_refused_not_freed(machine10, tmp_path, monkeypatch):
    session = open_plan(machine10, tmp_path)
    before, child = machine10.cuda.counts(), os.getpid() + 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: child)
        with pytest.raises(BackendError, match=r"before this process was forked.*'spawn'"):
            session.run(images(1))
        session.close()
        gc.collect()
        assert machine10.cuda.counts() == before


def test_outputs_are_copies(machine10, tmp_path):
    session = open_plan(machine10, tmp_path)
    first = session.run(images(2, seed=1))
    kept = {name: values.copy() for name, values in first.items()}
    session.run(images(2, seed=2))
    for name, values in first.items():
        np.testing.assert_array_equal(values, kept[name])
        assert values.flags.owndata
        assert values.flags.writeable


def test_input_may_be_read_only(machine10, tmp_path):
    session = open_plan(machine10, tmp_path)
    pixels = images(2)
    pixels.setflags(write=False)
    check(session.run(pixels), pixels)


def test_graph_is_recorded_in_the_second_run(machine10, tmp_path):
    plain = open_plan(machine10, tmp_path, graphs=False)
    session = open_plan(machine10, tmp_path)
    assert "CUDA graphs" in session.detail
    assert "no CUDA graphs (turned off)" in plain.detail
    assert machine10.cuda.launches == 2, "opening tries a graph"
    launches = machine10.cuda.launches
    pixels = images(4)
    first, second, third = (session.run(pixels) for _ in range(3))
    assert machine10.cuda.launches == launches + 1, "expected a graph in the third run"
    for outputs in (first, second, third):
        check(outputs, pixels)
        for name, values in plain.run(pixels).items():
            np.testing.assert_array_equal(outputs[name], values)


def test_graph_ends_with_its_batch_size(machine10, tmp_path):
    session = open_plan(machine10, tmp_path)
    for batch in (4, 4, 4, 1, 4):  # the fake engine refuses a graph of another shape
        pixels = images(batch, seed=batch)
        check(session.run(pixels), pixels)
    assert machine10.cuda.counts()["graphs"] == 0


def test_graph_of_alternating_sizes_is_rare(machine10, tmp_path, monkeypatch):
    session = open_plan(machine10, tmp_path)
    recorded = []
    record = CudaGraph.record.__func__

    def counted(cls, *arguments):
        recorded.append(1)
        return record(cls, *arguments)

    monkeypatch.setattr(CudaGraph, "record", classmethod(counted))
    for batch in (8, 8, 8, 3) * 40:
        session.run(images(batch))
    assert 1 <= len(recorded) <= 3
    for _ in range(70):
        session.run(images(2))
    assert machine10.cuda.counts()["graphs"] == 1, "a size that stays gets its graph"


def test_pool_lends_the_context_of_that_batch_size(machine10, tmp_path):
    session = open_plan(machine10, tmp_path)
    contexts, profile = session._contexts, session._profiles[0]
    with contexts.borrow(profile) as one, contexts.borrow(profile) as other:
        one.run(images(2))
        other.run(images(5))
    for size, context in ((2, one), (5, other), (2, one)):
        with contexts.borrow(profile, size) as got:
            assert got is context


def test_session_without_cuda_bindings_reports_it(machine10, tmp_path, monkeypatch):
    monkeypatch.setattr("hybrid_rt.backends.tensorrt.load_bindings", lambda: None)
    session = open_plan(machine10, tmp_path)
    assert "no CUDA graphs (cuda-bindings is not installed)" in session.detail
    pixels = images(2)
    check(session.run(pixels), pixels)
    assert machine10.cuda.launches == 0


def test_graph_that_fails_is_reported_and_unused(machine10, tmp_path):
    machine10.cuda.capture_fails = True
    session = open_plan(machine10, tmp_path)
    assert "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in session.detail
    pixels = images(3)
    for _ in range(3):
        check(session.run(pixels), pixels)
    assert machine10.cuda.launches == 0


def test_rtx_uses_own_graphs_and_keeps_kernels(monkeypatch, tmp_path, provider):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    machine = FakeMachine(monkeypatch, "rtx", provider=provider)
    for run in range(2):
        session = open_plan(machine, tmp_path, cache=True)
        assert session.detail.endswith("CUDA graphs")
        context = machine.trt.engines[-1].contexts[0]
        config = context.config
        assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
        assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
        assert context.cached_kernels == (b"kernels" if run else None)
        session.close()
    assert machine.cuda.launches == 0


def test_context_gets_auxiliary_streams(machine10, tmp_path):
    open_plan(machine10, tmp_path)
    (context, *_) = machine10.trt.engines[0].contexts
    assert len(context.aux_streams) == 1


def test_several_profiles_split_batches(machine10, tmp_path):
    session = open_plan(machine10, tmp_path, plan={"profiles": ((1, 1), (2, 8), (9, 32))})
    for batch in (1, 5, 20, 40, 1):
        pixels = images(batch, seed=batch)
        check(session.run(pixels), pixels)
    profiles = sorted(c.profile for c in machine10.trt.engines[0].contexts)
    assert profiles == [0, 1, 2]


def test_fixed_batch_is_filled_up(machine10, tmp_path):
    session = open_plan(machine10, tmp_path, plan={"profiles": ((4, 4),), "batch": 4})
    for batch in (1, 4, 7):
        pixels = images(batch, seed=batch)
        check(session.run(pixels), pixels)


@pytest.mark.parametrize(
    ("size", "profiles", "cut"),
    [
        (3, [(1, 8)], [(0, 3, 0)]),
        (20, [(1, 8)], [(0, 8, 0), (8, 16, 0), (16, 20, 0)]),
        (1, [(1, 8), (1, 1)], [(0, 1, 1)]),
        (1, [(4, 4)], [(0, 1, 0)]),
        (9, [(4, 4), (1, 1)], [(0, 4, 0), (4, 8, 0), (8, 9, 1)]),
        (3, [(1, 2), (4, 8)], [(0, 3, 1)]),
    ],
)
def test_cut_batch(size, profiles, cut):
    profiles = tuple(OptimizationProfile(i, low, high) for i, (low, high) in enumerate(profiles))
    assert [(a, b, p.index) for a, b, p in cut_batch(size, profiles)] == cut


def test_eight_threads_equal_one(monkeypatch, tmp_path, provider):
    machine = FakeMachine(monkeypatch, "10.3", delay=0.0005, provider=provider)
    session = open_plan(machine, tmp_path)
    batches = [images(1 + i % 5, seed=i) for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        for batch, outputs in zip(batches, pool.map(session.run, batches), strict=True):
            check(outputs, batch)
    contexts = machine.trt.engines[0].contexts
    assert 1 < len(contexts) <= MAX_CONTEXTS
    session.close()
    gc.collect()
    assert sum(machine.cuda.counts().values()) == 0


def test_one_context_serves_many_threads(machine10, tmp_path):
    machine10.trt.refuse_contexts = 1
    session = open_plan(machine10, tmp_path)
    batches = [images(2, seed=i) for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        for batch, outputs in zip(batches, pool.map(session.run, batches), strict=True):
            check(outputs, batch)
    assert len(machine10.trt.engines[0].contexts) == 1


def test_close_while_others_run_ends_them(monkeypatch, tmp_path, provider):
    machine = FakeMachine(monkeypatch, "10.3", delay=0.01, provider=provider)
    session = open_plan(machine, tmp_path)
    started, ended = threading.Event(), []

    def work():
        started.set()
        try:
            for _ in range(50):
                session.run(images(1))
        except BackendError as err:
            ended.append(str(err))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    started.wait()
    session.close()
    for thread in threads:
        thread.join()
    assert len(ended) == 6
    assert all("closed" in text for text in ended)
    gc.collect()
    assert sum(machine.cuda.counts().values()) == 0


def test_close_waits_for_running_calls(monkeypatch, tmp_path, provider):
    machine = FakeMachine(monkeypatch, "10.3", delay=0.2, provider=provider)
    session = open_plan(machine, tmp_path)
    done = []
    thread = threading.Thread(target=lambda: done.append(session.run(images(1))))
    thread.start()
    while not session._contexts._inside:
        time.sleep(0.001)
    session.close()
    assert sum(machine.cuda.counts().values()) == 0
    thread.join()
    check(done[0], images(1))


def test_forgotten_session_is_freed(machine10, tmp_path):
    open_plan(machine10, tmp_path)
    gc.collect()
    assert sum(machine10.cuda.counts().values()) == 0
    assert machine10.cuda.stack == []


def test_ten_thousand_calls_leak_nothing(machine10, tmp_path):
    session = open_plan(machine10, tmp_path)
    pixels = images(1)
    session.run(pixels)
    before = machine10.cuda.counts()
    for _ in range(10_000):
        session.run(pixels)
    assert machine10.cuda.counts() == before


def test_out_of_memory_names_remedy_and_frees(machine10, tmp_path):
    machine10.cuda.memory_bytes = 2000
    with pytest.raises(BackendError, match=r"out of memory.*smaller --max-batch"):
        open_plan(machine10, tmp_path)
    gc.collect()
    assert sum(machine10.cuda.counts().values()) == 0
    assert machine10.cuda.stack == []


def test_memory_limit_bounds_the_contexts(machine10, tmp_path):
    with pytest.raises(BadUsage, match="memory_limit is 100 bytes"):
        open_plan(machine10, tmp_path, memory_limit=100)
    session = open_plan(machine10, tmp_path, memory_limit=2200)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(session.run, [images(1)] * 24))
    assert len(machine10.trt.engines[0].contexts) <= 2


def test_damaged_plan_raises(machine, tmp_path):
    path = tmp_path / "model.plan"
    path.write_bytes(b"junk")
    backend = "tensorrt-rtx" if machine.library == "tensorrt_rtx" else "tensorrt"
    match = "malformed engine" if machine.library == "tensorrt_rtx" else "magic tag does not match"
    with pytest.raises(ModelFileError, match=match):
        open_trt(path, SessionOptions(spec=SPEC, backend=backend))
    assert machine.cuda.stack == []


def test_plan_of_another_model_raises(machine10, tmp_path):
    with pytest.raises(ModelFileError, match=r"\[batch,64,64,3\].*\[batch,32,32,3\]"):
        open_plan(machine10, tmp_path, plan={"size": 64})


def test_missing_driver_raises_before_tensorrt_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hybrid_rt.backends.tensorrt.load_tensorrt", lambda name: pytest.fail("TensorRT was loaded")
    )

    def no_library(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", no_library)
    path = tmp_path / "model.plan"
    path.write_bytes(b"plan {}")
    with pytest.raises(DeviceError, match="no NVIDIA driver here"):
        open_trt(path, SessionOptions(spec=SPEC))


def test_cpu_as_device_raises(machine10, tmp_path):
    with pytest.raises(BadUsage, match="expected auto, cuda or cuda:N for a TensorRT plan"):
        open_plan(machine10, tmp_path, device="cpu")
    with pytest.raises(DeviceError, match=r"this machine has cuda:0 \(Fake GPU"):
        open_plan(machine10, tmp_path, device="cuda:3")


def test_other_gpu_raises_and_names_both(machine, tmp_path):
    path, options = bundle_of(machine, tmp_path, compute_capability="12.0")
    with pytest.raises(
        DeviceError,
        match=r"built for compute capability 12.0; this machine has cuda:0 \(Fake GPU, compute "
        r"capability 8.9\); HybridEngine\(..., rebuild=True\) builds it again from model.onnx",
    ):
        open_trt(path, options)
    assert machine.trt.engines == [], "TensorRT saw the plan"


def test_other_version_raises_and_names_both(machine, tmp_path):
    path, options = bundle_of(machine, tmp_path, version="9.1.0")
    here = machine.trt.__version__.replace(".", r"\.")
    with pytest.raises(BackendError, match=rf"9\.1\.0; this machine has TensorRT(-RTX)? {here}"):
        open_trt(path, options)
    assert machine.trt.engines == []


def test_open_session_opens_matching_bundle(machine, tmp_path):
    path, options = bundle_of(machine, tmp_path)
    session = open_session(path, spec=SPEC, options=options)
    pixels = images(2)
    check(session.run(pixels), pixels)
    assert "fp32" in session.detail


@pytest.fixture
def asked(machine10, monkeypatch):
    """What a fake of build_engine was asked for."""
    asked = {}

    def build(onnx, plan, **choices):
        asked.update(choices, onnx=onnx)
        plan.write_bytes(plan_bytes() + b" ")
        from hybrid_rt.tensorrt.builder.build_engine import BuiltEngine

        facts = {"library": "tensorrt", "version": "10.3.0", "compute_capability": "8.9"}
        return BuiltEngine(plan, facts | {"max_batch": 8}, {"weight_share": {"float32": 1.0}}, "")

    monkeypatch.setattr("hybrid_rt.tensorrt.builder.build_engine.build_engine", build)
    return asked


@pytest.mark.parametrize("changes", [{"compute_capability": "7.5"}, {"version": "10.0.1"}])
def test_rebuild_updates_the_bundle(machine10, tmp_path, asked, changes):
    path, options = bundle_of(machine10, tmp_path, **changes)
    rebuilt = SessionOptions(spec=SPEC, bundle=options.bundle, entry=options.entry, rebuild=True)
    session = open_trt(path, rebuilt)
    pixels = images(2)
    check(session.run(pixels), pixels)
    assert asked["onnx"] == tmp_path / "model.onnx"
    assert asked["library"] == "tensorrt"
    assert asked["max_batch"] == 8
    bundle = Bundle.load(tmp_path)
    bundle.check("model.plan")
    assert bundle.files["model.plan"].built_for == built_for(machine10)
    assert bundle.files["model.plan"].parity_report is None


def test_info_after_rebuild_has_the_new_digest(machine10, tmp_path, asked):
    path, options = bundle_of(machine10, tmp_path, version="10.0.1")
    with HybridEngine(path, rebuild=True) as engine:
        assert asked
        assert engine.info["sha256"] == Bundle.load(tmp_path).files["model.plan"].sha256
        assert engine.info["sha256"] != options.entry.sha256


def test_missing_libraries_name_what_to_install(machine10, tmp_path, monkeypatch):
    for name in ("pycuda.driver", "cuda.bindings.driver", "cuda.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendMissingError, match=r"cuda-bindings or PyCUDA.*hybrid-rt\[gpu\]'"):
        open_plan(machine10, tmp_path)
    monkeypatch.setattr("hybrid_rt.tensorrt.library._MODULES", {"tensorrt": ()})
    with pytest.raises(BackendMissingError, match="pip install 'tensorrt"):
        open_plan(machine10, tmp_path)


def test_precision_option_raises(machine10, tmp_path):
    with pytest.raises(BadUsage, match="a plan computes in the precision it was built in"):
        open_plan(machine10, tmp_path, precision="bf16")


def test_other_library_than_the_plans_raises(machine10, tmp_path):
    path, options = bundle_of(machine10, tmp_path)
    options = SessionOptions(
        spec=SPEC, bundle=options.bundle, entry=options.entry, backend="tensorrt-rtx"
    )
    with pytest.raises(BadUsage, match=r"built with TensorRT 10\.3\.0 and runs with that only"):
        open_trt(path, options)
