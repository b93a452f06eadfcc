"""The file of a bundle to open on this machine, how to run it, and why.

A folder opens its fastest validated file for this machine:

- with a GPU: a TensorRT plan that fits it, then fp16, bf16 and fp32 ONNX (onnxruntime-gpu);
- on a CPU: by the measured speed of each backend and precision that a parity report covers.

An ONNX file that the caller names runs on a CPU in the fastest way that its parity report covers. A
file is validated if its parity report passed; a plan without its own takes that of the ONNX it was
built from. Nothing is deserialized before its SHA-256 is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid_rt.backends.gpu_support import onnxruntime_has_gpu, tensorrt_support, why_gpu_unused
from hybrid_rt.backends.registry import BACKENDS, is_installed
from hybrid_rt.bundle.manifest import BUNDLE_NAME, Bundle, BundleFile
from hybrid_rt.bundle.onnx_metadata import check_embedded_spec, read_spec
from hybrid_rt.bundle.validated import combination, cpu_reports
from hybrid_rt.cpu import CpuProfile, process_profile
from hybrid_rt.cpu.ranking import candidates, describe
from hybrid_rt.cuda import CudaDevice, cuda_device_count, cuda_devices, parse_device
from hybrid_rt.errors import BackendMissingError, DeviceError, ModelFileError, UsageError
from hybrid_rt.spec import ModelSpec
from hybrid_rt.tensorrt.compatibility import gpu_mismatch, version_mismatch

_PLANS = (".plan", ".engine")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file to open, the reason for it, and its entry in the bundle if it has one.

    ``backend`` and ``precision`` are how it runs; None leaves that to ``open_session``.
    """

    path: Path
    spec: ModelSpec
    reason: str
    backend: str | None = None
    precision: str | None = None
    bundle: Bundle | None = None
    entry: BundleFile | None = None

    @property
    def report(self) -> Mapping[str, Any] | None:
        """The passed parity report of the backend and precision that run on the CPU, or None."""
        if self.entry is None or self.backend is None:
            return None
        key = combination(self.backend, self.entry.precision, self.precision)
        return cpu_reports(self.entry).get(key)

    @property
    def validated_by(self) -> str | None:
        """The file whose passed parity report covers this one."""
        if self.bundle is None:
            return None
        return _validated_by(self.bundle, self.path.name)


def find_model(
    path: Path,
    *,
    device: str = "auto",
    backend: str | None = None,
    precision: str | None = None,
) -> ModelFile:
    """Return the model file behind the path of a file or bundle; its digest is checked.

    Raises ModelFileError, DigestError or SpecError if a file is missing, damaged or does not fit.
    Raises DeviceError for a plan on a machine without a GPU, BackendMissingError if only the GPU
    could run a file and a library for it is missing.
    """
    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    if path.is_dir():
        bundle = Bundle.load(path)
        machines = Machine.here(device)
        try:
            chosen = fastest(bundle, machines, backend, precision)
        except ModelFileError as err:
            missing = why_gpu_unused(plans=True) if machines[-1].gpu is not None else None
            if missing is None:
                raise
            raise BackendMissingError(f"{err}; {missing}, or use device='cpu'") from err
        return _from_bundle(bundle, chosen)
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
        return _from_bundle(bundle_beside, _named(bundle_beside, path, device, backend, precision))
    if path.suffix != ".onnx":
        raise ModelFileError(
            f"{path} ends in {path.suffix!r}; expected .onnx, .plan or a bundle's folder"
        )
    return ModelFile(path=path, spec=read_spec(path), reason="named by the caller, no bundle")


@dataclass(frozen=True)
class Choice:
    """A file of a bundle, the reason for it, and how to run it; None leaves that open."""

    name: str
    reason: str
    backend: str | None = None
    precision: str | None = None


def _from_bundle(bundle: Bundle, choice: Choice) -> ModelFile:
    path = bundle.check(choice.name)
    if path.suffix == ".onnx":
        check_embedded_spec(path, bundle.spec)
    return ModelFile(
        path=path,
        spec=bundle.spec,
        reason=choice.reason,
        backend=choice.backend,
        precision=choice.precision,
        bundle=bundle,
        entry=bundle.files[choice.name],
    )


def _named(
    bundle: Bundle, path: Path, device: str, backend: str | None, precision: str | None
) -> Choice:
    """The file that the caller named; on a CPU in the fastest way that its parity report covers."""
    choice = Choice(path.name, "named by the caller")
    kind, _ = parse_device(device)
    asked = backend is not None and backend not in ("openvino", "onnxruntime")
    on_gpu = kind == "cuda" or (kind == "auto" and onnxruntime_has_gpu())
    if path.suffix != ".onnx" or asked or on_gpu or precision in ("fp32", "bf16"):
        return choice
    machine = Machine.of_cpu()
    entry = {path.name: bundle.files[path.name]}
    found = candidates(entry, machine.cpu, machine.allowed(backend))
    if not found:
        return Choice(path.name, "named by the caller; no parity report covers what runs here")
    reason = f"named by the caller; {describe(found, machine.cpu)}"
    return Choice(path.name, reason, found[0].backend, found[0].hint)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The properties of a machine that decide which file is fastest on it.

    ``tensorrt`` maps a library to its version; ``cpu`` is what this process can run on the CPU.
    ``runs_onnx`` is called only for an ONNX file on a GPU, since onnxruntime loads its CUDA
    libraries in it.
    """

    gpu: CudaDevice | None = None
    tensorrt: Mapping[str, str] = field(default_factory=dict)
    backends: frozenset[str] = frozenset()
    runs_onnx: Callable[[], bool] = lambda: True
    cpu: CpuProfile = field(default_factory=CpuProfile)

    @classmethod
    def here(cls, device: str) -> tuple[Machine, ...]:
        """Return the GPU and CPU that ``device`` ("auto", "cpu", "cuda:N") allows, best first."""
        kind, index = parse_device(device)
        machines = []
        if kind != "cpu" and cuda_device_count() > 0:
            versions, _ = tensorrt_support()
            machines.append(
                cls(
                    gpu=cuda_devices()[index],
                    tensorrt=versions,
                    backends=frozenset(["onnxruntime"]),
                    runs_onnx=onnxruntime_has_gpu,
                )
            )
        if kind != "cuda":
            machines.append(cls.of_cpu())
        return tuple(machines)

    @classmethod
    def of_cpu(cls) -> Machine:
        """Return the CPU alone. Its profile is probed if that was not done before."""
        backends = frozenset(n for n in ("openvino", "onnxruntime") if is_installed(n))
        return cls(backends=backends, cpu=process_profile())

    def allowed(self, backend: str | None) -> frozenset[str]:
        """Return the backends that may be used if the caller asks for ``backend``."""
        return self.backends if backend is None else self.backends & {backend.partition("-")[0]}


def fastest(
    bundle: Bundle,
    machines: Sequence[Machine],
    backend: str | None = None,
    precision: str | None = None,
) -> Choice:
    """Return the bundle's fastest validated file for the first machine that has one.

    Raises ModelFileError if no validated file runs on any of them.
    """
    passed_over = ""
    for machine in machines:
        choice = (
            _fastest_on_cpu(bundle, machine, backend, precision)
            if machine.gpu is None
            else _fastest_on_gpu(bundle, machine, backend)
        )
        if choice is not None:
            return replace(choice, reason=choice.reason + passed_over)
        passed_over = f"; none runs on {machine.gpu}" if machine.gpu else ""
    folder = bundle.path(BUNDLE_NAME).parent
    raise ModelFileError(
        f"{folder} has no validated file that runs here (it lists "
        f"{', '.join(bundle.files) or 'nothing'}); open one by name, such as "
        f"HybridEngine('{folder / 'model.onnx'}'), or export again"
    )


def _fastest_on_cpu(
    bundle: Bundle, machine: Machine, backend: str | None, precision: str | None
) -> Choice | None:
    if backend == "fake":
        validated = [n for n in bundle.files if _validated_by(bundle, n) is not None]
        return Choice(validated[0], "the first validated file") if validated else None
    allowed = machine.allowed(backend)
    found = candidates(bundle.files, machine.cpu, allowed, precision=precision)
    if not found:
        return None
    return Choice(found[0].name, describe(found, machine.cpu), found[0].backend, found[0].hint)


def _fastest_on_gpu(bundle: Bundle, machine: Machine, backend: str | None) -> Choice | None:
    for name, file in sorted(bundle.files.items(), key=lambda item: _rank(item[1])):
        source = _validated_by(bundle, name)
        if source is not None and _runs_on_gpu(machine, file, backend):
            through = "" if source == name else f", validated through {source}"
            return Choice(name, f"fastest validated file for this GPU{through}")
    return None


def _rank(file: BundleFile) -> int:
    order = ("plan", "fp16", "bf16", "fp32", "int8")
    return order.index("plan" if file.format == "plan" else file.precision)


def _runs_on_gpu(machine: Machine, file: BundleFile, backend: str | None) -> bool:
    if file.format == "plan":
        return backend in (None, "tensorrt", "tensorrt-rtx") and _plan_fits(machine, file)
    if backend == "fake":
        return True
    return "onnxruntime" in machine.allowed(backend) and machine.runs_onnx()


def _plan_fits(machine: Machine, file: BundleFile) -> bool:
    built_for = file.built_for
    if built_for is None or machine.gpu is None or built_for.library not in machine.tensorrt:
        return False
    version = machine.tensorrt[built_for.library]
    return not (gpu_mismatch(built_for, machine.gpu) or version_mismatch(built_for, version))


def _validated_by(bundle: Bundle, name: str) -> str | None:
    file = bundle.files.get(name)
    if file is None:
        return None
    if file.parity_report is not None or file.format != "plan":
        return name if file.validated else None
    source = bundle.files.get(file.source or "")
    return file.source if source is not None and source.validated else None


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
        f"{path} is a TensorRT plan and needs an NVIDIA GPU with its driver, and none responds "
        f"here; {advice}"
    )
