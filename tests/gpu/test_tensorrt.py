"""On an NVIDIA GPU: build the FP16 engine, run it, compare it with PyTorch.

pytest -m gpu            # the tiny hybrid; add  -m "gpu and slow"  for the full-size one
"""

import ctypes
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from factories.gpu_bundle import export_hybrid
from hybrid_rt import HybridEngine
from hybrid_rt.backends.base import SessionOptions
from hybrid_rt.backends.tensorrt import open_trt
from hybrid_rt.bundle.manifest import Bundle
from hybrid_rt.cuda import cuda_device
from hybrid_rt.errors import DeviceError

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


def pixels(spec, batch, seed=0):
    shape = (batch, spec.preprocess.height, spec.preprocess.width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def plan_of(folder):
    """Path and entry of the bundle's plan: model.plan, or model.sm89.plan from TensorRT-RTX."""
    found = [(n, f) for n, f in Bundle.load(folder).files.items() if f.format == "plan"]
    (name, entry), *others = found
    assert not others
    return folder / name, entry


def open_plan(folder, *, graphs=True):
    bundle = Bundle.load(folder)
    path, entry = plan_of(folder)
    options = SessionOptions(spec=bundle.spec, bundle=bundle, entry=entry)
    return bundle.spec, open_trt(path, options, graphs=graphs)


def compare_plan(folder, model):
    """The plan's own parity report, measured on this GPU."""
    from hybrid_export.parity.compare import Reference, compare
    from hybrid_export.parity.dataset import load_verification
    from hybrid_export.parity.tolerances import TOLERANCES
    from hybrid_export.sessions import PyTorchSession

    spec, session = open_plan(folder)
    images = load_verification(str(folder.parent / "images"), spec, limit=24)
    reference = Reference.of(PyTorchSession(model, spec), images)
    report = compare(session, reference, spec, TOLERANCES["fp16"])
    session.close()
    print(f"\n{session.detail}: {report.summary()}")
    return report


def test_plan_is_fp16_for_this_gpu(bundle_folder):
    _, entry = plan_of(bundle_folder)
    assert entry.precision == "fp16"
    assert entry.dtype_report["weight_share"]["float16"] >= 0.95, entry.dtype_report
    assert cuda_device().compute_capability in entry.built_for.compute_capability.split(",")


def test_plan_equals_pytorch_within_tolerances(bundle_folder, tiny_model):
    report = compare_plan(bundle_folder, tiny_model[0])
    assert report.passed, report.failures


@pytest.mark.slow
def test_the_full_size_plan_equals_pytorch(tmp_path):
    from factories.tiny_hybrid import make_model

    model, spec = make_model("vit_base_patch16_224", "resnet50", size=224)
    folder = export_hybrid(tmp_path, model, spec, "--max-batch", "16")
    report = compare_plan(folder, model)
    assert report.passed, report.failures


def test_selftest(bundle_folder):
    with HybridEngine(plan_of(bundle_folder)[0]) as engine:
        result = engine.selftest()
        assert result.passed, result


def test_every_batch_size_equals_its_rows_alone(bundle_folder):
    spec, session = open_plan(bundle_folder)
    for batch in (1, 2, 3, 8, 11):
        images = pixels(spec, batch, seed=batch)
        together = session.run(images)["logits"]
        alone = np.concatenate([session.run(image[None])["logits"] for image in images])
        gap = np.abs(together - alone).max()
        assert gap < 1e-2, f"batch {batch}: {gap}"
        assert (together.argmax(1) == alone.argmax(1)).mean() == 1 or gap < 4e-3
    session.close()


def test_graphs_on_and_off_are_equal(bundle_folder):
    spec, on = open_plan(bundle_folder)
    _, off = open_plan(bundle_folder, graphs=False)
    print(f"\n{on.detail}\n{off.detail}")
    for batch in (1, 4, 1, *[4] * 6, *[1] * 6, 4):  # graphs are recorded, replayed and dropped
        images = pixels(spec, batch, seed=batch)
        for name, values in on.run(images).items():
            np.testing.assert_array_equal(values, off.run(images)[name], err_msg=name)
    on.close()
    off.close()


def test_eight_threads_equal_one(bundle_folder):
    spec, session = open_plan(bundle_folder)
    batches = [pixels(spec, 1 + i % 4, seed=i) for i in range(200)]
    serial = [session.run(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(serial, pool.map(session.run, batches), strict=True):
            for name in one:
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    session.close()


def test_beside_torch_on_the_same_gpu(bundle_folder):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} cannot use this GPU")
    matrix = torch.randn(256, 256, device="cuda")
    expected = (matrix @ matrix).cpu()
    spec, session = open_plan(bundle_folder)
    images = pixels(spec, 2)
    before = session.run(images)

    def work(index):
        if index % 2:
            return torch.equal((matrix @ matrix).cpu(), expected)
        return all(np.array_equal(v, before[n]) for n, v in session.run(images).items())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(100)))
    session.close()
    assert torch.equal((matrix @ matrix).cpu(), expected), "closing harmed torch's context"


def test_many_calls_leak_no_device_memory(bundle_folder):
    from hybrid_rt.cuda import open_gpu

    driver = ctypes.CDLL("libcuda.so.1")

    def free_memory():
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with gpu.active():
            assert driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
        return free.value

    spec, session = open_plan(bundle_folder)
    images = pixels(spec, 1)
    for _ in range(100):
        session.run(images)
    gpu = open_gpu(cuda_device())
    before = free_memory()
    for _ in range(10_000):
        session.run(images)
    after = free_memory()
    session.close()
    assert before - after < 32 << 20, f"{(before - after) >> 20} MiB"


def change_built_for(folder, **changes):
    path = folder / "model.json"
    data = json.loads(path.read_text())
    data["files"][plan_of(folder)[0].name]["built_for"].update(changes)
    path.write_text(json.dumps(data))


def test_a_plan_for_another_gpu(bundle_folder, tmp_path):
    folder = shutil.copytree(bundle_folder, tmp_path / "bundle")
    change_built_for(folder, compute_capability="5.2", hardware_compatible=False)
    with pytest.raises(DeviceError, match=r"built for compute capability 5\.2; this machine has"):
        HybridEngine(plan_of(folder)[0])


def test_rebuild(bundle_folder, tmp_path):
    folder = shutil.copytree(bundle_folder, tmp_path / "bundle")
    change_built_for(folder, compute_capability="5.2", hardware_compatible=False)
    with HybridEngine(plan_of(folder)[0], rebuild=True) as engine:
        assert engine.selftest().passed
    built_for = plan_of(folder)[1].built_for
    assert built_for.compute_capability == cuda_device().compute_capability
