"""A folder opens its fastest validated file; plans need a GPU; nothing is chosen silently."""

import dataclasses
import re
import shutil

import pytest

from factories.parity_reports import parity_report
from hybrid_rt import DeviceError, HybridEngine, ModelFileError
from hybrid_rt.bundle.manifest import BuiltFor, Bundle, describe_file
from hybrid_rt.cpu import CpuProfile, Measurement
from hybrid_rt.cuda import CudaDevice, driver_problem
from hybrid_rt.selection import Machine, fastest

NO_GPU = driver_problem() is not None
BACKENDS = frozenset(["openvino", "onnxruntime"])
#: Milliseconds of a CPU with AMX, one without bf16, and one capped to AVX-512 (docs/runtime.md).
AMX = {"openvino int8+bf16": 3, "openvino int8": 4, "onnxruntime int8": 6, "openvino bf16": 5}
FP32 = {"openvino fp32": 16, "onnxruntime fp32": 18}
ADA = CudaDevice(index=0, name="L4", compute_capability="8.9", memory_bytes=24 << 30)


def cpu_machine(times=AMX | FP32, **changes):
    found = {n: Measurement(status="ran", milliseconds=float(ms)) for n, ms in times.items()}
    profile = dataclasses.replace(CpuProfile(measurements=found), **changes)
    return Machine(backends=BACKENDS, cpu=profile)


def gpu_machine(**changes):
    gpu = Machine(gpu=ADA, tensorrt={"tensorrt": "10.3.0"}, backends=frozenset(["onnxruntime"]))
    return dataclasses.replace(gpu, **changes)


@pytest.fixture
def add_plan(with_files):
    def add(folder, *, compute_capability="8.9", version="10.3.0", source="model.fp16.onnx"):
        path = folder / "model.plan"
        path.write_bytes(b"plan")
        built_for = BuiltFor(
            library="tensorrt",
            version=version,
            compute_capability=compute_capability,
            max_batch=8,
        )
        entry = describe_file(path, precision="fp16", built_for=built_for, source=source)
        dataclasses.replace(Bundle.load(folder).with_file(path.name, entry), folder=None).save(
            folder
        )

    return add


@pytest.fixture
def choice(bundle_folder):
    def choose(machine=None, backend=None, precision=None):
        bundle = Bundle.load(bundle_folder)
        chosen = fastest(bundle, [machine or cpu_machine()], backend, precision)
        return chosen.name, chosen.backend, chosen.precision

    return choose


def test_cpu_takes_the_fastest_measured_combination(bundle_folder, with_files, choice):
    assert choice() == ("model.onnx", "openvino", "fp32")
    with_files(bundle_folder, fp16=("fp16", True), bf16=("bf16", True), int8=("int8", False))
    assert choice() == ("model.bf16.onnx", "openvino", "bf16")
    assert choice(backend="onnxruntime") == ("model.onnx", "onnxruntime", None)
    assert choice(precision="fp32") == ("model.onnx", "openvino", "fp32")
    with_files(bundle_folder, int8=("int8", True))
    assert choice() == ("model.int8.onnx", "openvino", "fp32")
    # A processor capped to AVX-512: bf16 is emulated there and slower than fp32.
    capped = cpu_machine(FP32 | {"openvino bf16": 35, "openvino int8": 9, "onnxruntime int8": 13})
    assert choice(capped) == ("model.int8.onnx", "openvino", "fp32")
    with_files(bundle_folder, int8=("int8", False))
    assert choice(capped) == ("model.onnx", "openvino", "fp32")


def test_close_times_do_not_change_the_backend(bundle_folder, with_files, choice):
    close = cpu_machine({"openvino fp32": 30, "onnxruntime fp32": 19})
    assert choice(close) == ("model.onnx", "openvino", "fp32")
    far = cpu_machine({"openvino fp32": 40, "onnxruntime fp32": 19})
    assert choice(far) == ("model.onnx", "onnxruntime", None)
    with_files(bundle_folder, int8=("int8", True))
    close = cpu_machine(FP32 | {"openvino int8+bf16": 7.7, "openvino int8": 7.5})
    assert choice(close) == ("model.int8.onnx", "openvino", "fp32"), "bf16 was not validated"


def test_fastest_skips_what_no_report_covers(bundle_folder, choice):
    bundle = Bundle.load(bundle_folder)

    def with_bf16(passed):
        entry = dataclasses.replace(
            bundle.files["model.onnx"], parity_report=parity_report(bf16=passed)
        )
        dataclasses.replace(bundle.with_file("model.onnx", entry), folder=None).save(bundle_folder)

    with_bf16(False)
    assert choice() == ("model.onnx", "openvino", "fp32")
    with_bf16(True)
    assert choice() == ("model.onnx", "openvino", "bf16")
    assert choice(precision="fp32") == ("model.onnx", "openvino", "fp32")
    assert choice(backend="onnxruntime") == ("model.onnx", "onnxruntime", None)


def test_what_dies_or_was_not_probed_is_not_taken(bundle_folder, with_files, choice):
    with_files(bundle_folder, bf16=("bf16", True), int8=("int8", True))
    dead = Measurement(status="died", detail="SIGILL")
    found = cpu_machine(FP32 | {"onnxruntime int8": 6}).cpu.measurements
    dying = {**found, "openvino bf16": dead, "openvino int8": dead}
    machine = Machine(backends=BACKENDS, cpu=CpuProfile(measurements=dying))
    assert choice(machine) == ("model.int8.onnx", "onnxruntime", None)
    unprobed = Machine(backends=BACKENDS, cpu=CpuProfile(origin="fallback"))
    assert choice(unprobed) == ("model.onnx", "openvino", "fp32")
    switched_off = Machine(backends=BACKENDS, cpu=CpuProfile(origin="off"))
    assert choice(switched_off) == ("model.int8.onnx", "openvino", "fp32")


def test_of_equal_files_the_fp32_one_is_taken(bundle_folder, with_files, choice):
    with_files(bundle_folder, bf16=("bf16", True))
    bundle = Bundle.load(bundle_folder)
    entry = dataclasses.replace(bundle.files["model.onnx"], parity_report=parity_report(bf16=True))
    dataclasses.replace(bundle.with_file("model.onnx", entry), folder=None).save(bundle_folder)
    assert choice() == ("model.onnx", "openvino", "bf16")


def test_the_reason_names_what_was_measured(bundle_folder):
    reason = fastest(Bundle.load(bundle_folder), [cpu_machine()]).reason
    assert "fp32 on openvino 16.0 ms" in reason
    assert "fp32 on onnxruntime 18.0 ms" in reason


def test_order_on_a_gpu(bundle_folder, with_files, add_plan):
    def choice(*machines):
        chosen = fastest(Bundle.load(bundle_folder), machines)
        return chosen.name, chosen.reason

    with_files(bundle_folder, fp16=("fp16", True), int8=("int8", True))
    assert choice(gpu_machine())[0] == "model.fp16.onnx"
    add_plan(bundle_folder)
    name, reason = choice(gpu_machine())
    assert name == "model.plan"
    assert "validated through model.fp16.onnx" in reason
    assert choice(gpu_machine(tensorrt={"tensorrt": "10.4.0"}))[0] == "model.fp16.onnx"
    assert choice(gpu_machine(tensorrt={}))[0] == "model.fp16.onnx"
    add_plan(bundle_folder, compute_capability="9.0")
    assert choice(gpu_machine())[0] == "model.fp16.onnx"
    name, reason = choice(gpu_machine(backends=frozenset()), cpu_machine())
    assert name == "model.int8.onnx"
    assert "none runs on cuda:0 (L4" in reason


def test_a_plan_is_as_validated_as_its_source(bundle_folder, with_files, add_plan):
    with_files(bundle_folder, fp16=("fp16", False))
    add_plan(bundle_folder)
    assert fastest(Bundle.load(bundle_folder), [gpu_machine()]).name == "model.onnx"


def test_nothing_validated(bundle_folder):
    bundle = Bundle.load(bundle_folder)
    entry = dataclasses.replace(bundle.files["model.onnx"], parity_report=None)
    dataclasses.replace(bundle.with_file("model.onnx", entry), folder=None).save(bundle_folder)
    with pytest.raises(ModelFileError, match=re.escape("model.onnx'), or export again")):
        HybridEngine(bundle_folder)
    assert HybridEngine(bundle_folder / "model.onnx").info["validated_by"] is None


def test_folder_opens_and_says_why(bundle_folder, images):
    with HybridEngine(bundle_folder, device="cpu") as engine:
        assert engine.info["path"] == str(bundle_folder / "model.onnx")
        assert engine.info["reason"].startswith("fastest validated combination on this CPU, fp32")
        assert engine.info["validated_by"] == "model.onnx"
        assert engine.info["precision"] == "fp32"
        assert engine.predict(images[0]).label in ("benign", "malignant")


def test_folder_without_a_bundle(tmp_path):
    with pytest.raises(ModelFileError, match=r"model\.json cannot be read"):
        HybridEngine(tmp_path)


@pytest.mark.skipif(not NO_GPU, reason="needs a machine without a GPU")
def test_plan_without_a_gpu_names_the_onnx_beside_it(bundle_folder, add_plan, tmp_path):
    add_plan(bundle_folder, source="model.onnx")
    with pytest.raises(DeviceError) as error:
        HybridEngine(bundle_folder / "model.plan")
    message = str(error.value)
    assert "\n" not in message
    assert f"open {bundle_folder / 'model.onnx'} instead" in message
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(bundle_folder / "model.plan", alone)
    with pytest.raises(DeviceError, match="export an ONNX file"):
        HybridEngine(alone / "model.plan")


@pytest.mark.skipif(not NO_GPU, reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(tiny_onnx):
    for device in ("cuda", "cuda:0", "cuda:3"):
        with pytest.raises(DeviceError, match="or use device='cpu'"):
            HybridEngine(tiny_onnx, device=device)
    with pytest.raises(DeviceError, match="was asked for"):
        HybridEngine(tiny_onnx, device="cuda:0", backend="onnxruntime")
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        HybridEngine(tiny_onnx, backend="onnxruntime-tensorrt")
