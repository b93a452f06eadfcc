"""Which file of a bundle to open on this machine, and what is known about it.

A folder gives its fastest certified file for this machine, in this order:

- with a GPU: a TensorRT plan that fits it, then fp16, bf16 and fp32 ONNX (onnxruntime-gpu);
- on a CPU: int8, then bf16 where the CPU has bf16 instructions, then fp32.

A file counts as certified when its parity certificate passed; a plan without one of its own takes
that of the ONNX it was built from. Nothing is deserialized before its SHA-256 was compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hybrid_rt.backends import BACKENDS, is_installed, onnxruntime_has_gpu
from hybrid_rt.bundle import BUNDLE_NAME, Bundle, BundleFile
from hybrid_rt.cuda import CudaDevice, cuda_device_count, cuda_devices, parse_device
from hybrid_rt.errors import DeviceError, ModelFileError, UsageError
from hybrid_rt.onnx_metadata import read_spec
from hybrid_rt.plan_fit import gpu_mismatch, version_mismatch
from hybrid_rt.spec import ModelSpec
from hybrid_rt.tensorrt_library import installed_libraries, load_tensorrt

_PLANS = (".plan", ".engine")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file to open. ``reason`` says why this one; ``entry`` is its line in the bundle, if any."""

    path: Path
    spec: ModelSpec
    reason: str
    bundle: Bundle | None = None
    entry: BundleFile | None = None

    @property
    def certified_by(self) -> str | None:
        """The file whose passed parity certificate covers this one."""
        if self.bundle is None:
            return None
        return _certified_by(self.bundle, self.path.name)


def find_model(path: Path, *, device: str = "auto", backend: str | None = None) -> ModelFile:
    """The model file behind a path to a file or to a bundle's folder, its digest checked.

    Raises ModelFileError, DigestError or SpecError for files that are not right, DeviceError for
    a plan on a machine without a GPU.
    """
    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    if path.is_dir():
        bundle = Bundle.load(path)
        name, reason = fastest(bundle, Machine.here(device), backend)
        return _from_bundle(bundle, name, reason)
    if not path.exists():
        raise ModelFileError(
            f"{path} does not exist; expected a model.onnx, a model.plan or a bundle's folder, "
            "made by hybrid-export"
        )
    manifest = path.parent / BUNDLE_NAME
    bundle_beside = Bundle.load(manifest) if manifest.exists() else None
    listed = bundle_beside is not None and path.name in bundle_beside.files
    if path.suffix in _PLANS:
        if backend != "fake" and cuda_device_count() == 0:
            raise _no_gpu(path, bundle_beside)
        if not listed:
            raise ModelFileError(
                f"{path} is a TensorRT plan that no {BUNDLE_NAME} beside it lists: its "
                "preprocessing and classes are unknown; keep the plan in its bundle's folder"
            )
    if bundle_beside is not None and listed:
        return _from_bundle(bundle_beside, path.name, "named by the caller")
    if path.suffix != ".onnx":
        raise ModelFileError(
            f"{path} ends in {path.suffix!r}; expected .onnx, .plan or a bundle's folder"
        )
    return ModelFile(path=path, spec=read_spec(path), reason="named by the caller, no bundle")


def _from_bundle(bundle: Bundle, name: str, reason: str) -> ModelFile:
    path = bundle.check(name)
    return ModelFile(
        path=path, spec=bundle.spec, reason=reason, bundle=bundle, entry=bundle.files[name]
    )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides which file is fastest. ``tensorrt`` maps a library to its version."""

    gpu: CudaDevice | None = None
    tensorrt: Mapping[str, str] = field(default_factory=dict)
    backends: frozenset[str] = frozenset()
    cpu_bf16: bool = False

    @classmethod
    def here(cls, device: str) -> tuple[Machine, ...]:
        """This machine as ``device`` ("auto", "cpu", "cuda:N") allows it to be used, best first."""
        kind, index = parse_device(device)
        machines = []
        if kind != "cpu" and cuda_device_count() > 0:
            versions = {str(name): load_tensorrt(name).version for name in installed_libraries()}
            backends = frozenset(["onnxruntime"] * onnxruntime_has_gpu())
            machines.append(cls(gpu=cuda_devices()[index], tensorrt=versions, backends=backends))
        if kind != "cuda":
            backends = frozenset(n for n in ("openvino", "onnxruntime") if is_installed(n))
            machines.append(cls(backends=backends, cpu_bf16=_cpu_has_bf16()))
        return tuple(machines)


def fastest(
    bundle: Bundle, machines: Sequence[Machine], backend: str | None = None
) -> tuple[str, str]:
    """Name of the bundle's fastest certified file for the first machine that has one, and why.

    Raises ModelFileError where no certified file runs on any of them.
    """
    passed_over = ""
    for machine in machines:
        gpu = machine.gpu is not None
        for name, file in sorted(bundle.files.items(), key=lambda item: _rank(item[1], gpu)):
            source = _certified_by(bundle, name)
            if source is None or not _runs_on(machine, file, backend):
                continue
            through = "" if source == name else f", certified through {source}"
            kind = "GPU" if gpu else "CPU"
            return name, f"fastest certified file for this {kind}{through}{passed_over}"
        passed_over = f"; none runs on {machine.gpu}" if gpu else ""
    folder = bundle.path(BUNDLE_NAME).parent
    raise ModelFileError(
        f"{folder} has no certified file that runs here (it lists "
        f"{', '.join(bundle.files) or 'nothing'}); open one by name, such as "
        f"HybridEngine('{folder / 'model.onnx'}'), or export again"
    )


def _rank(file: BundleFile, gpu: bool) -> int:
    if gpu:
        order = ("plan", "fp16", "bf16", "fp32", "int8")
        return order.index("plan" if file.format == "plan" else file.precision)
    return ("int8", "bf16", "fp32", "fp16").index(file.precision)


def _runs_on(machine: Machine, file: BundleFile, backend: str | None) -> bool:
    if file.format == "plan":
        return backend in (None, "tensorrt", "tensorrt-rtx") and _plan_fits(machine, file)
    if backend == "fake":
        return True
    able = machine.backends & {"onnxruntime"} if machine.gpu else machine.backends
    if backend is not None:
        able = able & {backend.partition("-")[0]}
    if machine.gpu is None and file.precision == "bf16":
        return "openvino" in able and machine.cpu_bf16
    # fp16 is emulated on CPUs: six times slower than fp32.
    return bool(able) and not (machine.gpu is None and file.precision == "fp16")


def _plan_fits(machine: Machine, file: BundleFile) -> bool:
    built_for = file.built_for
    if built_for is None or machine.gpu is None or built_for.library not in machine.tensorrt:
        return False
    version = machine.tensorrt[built_for.library]
    return not (gpu_mismatch(built_for, machine.gpu) or version_mismatch(built_for, version))


def _cpu_has_bf16() -> bool:
    if not is_installed("openvino"):
        return False
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _certified_by(bundle: Bundle, name: str) -> str | None:
    file = bundle.files.get(name)
    if file is None:
        return None
    if file.certificate is not None or file.format != "plan":
        return name if file.certified else None
    source = bundle.files.get(file.source or "")
    return file.source if source is not None and source.certified else None


def _no_gpu(path: Path, bundle: Bundle | None) -> DeviceError:
    names: list[str | None] = []
    if bundle is not None:
        entry = bundle.files.get(path.name)
        names = ["model.onnx", entry.source if entry else None, *bundle.files]
    names.append("model.onnx")
    found = [n for n in names if n and n.endswith(".onnx") and (path.parent / n).exists()]
    advice = (
        f"open {path.parent / found[0]} instead, which runs on this CPU"
        if found
        else "export an ONNX file from the same run and open that"
    )
    return DeviceError(
        f"{path} is a TensorRT plan and needs an NVIDIA GPU with its driver, and none answers "
        f"here; {advice}"
    )
