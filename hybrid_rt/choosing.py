"""Which file of a bundle to open on this machine, and what is known about it.

A folder gives its fastest certified file for this machine, in this order:

- with a GPU: a TensorRT plan that fits it, then fp16, bf16 and fp32 ONNX (onnxruntime-gpu);
- on a CPU: int8, then bf16 where the CPU has bf16 instructions, then fp32.

A file counts as certified when its parity certificate passed; a plan without one of its own takes
that of the ONNX it was built from. Nothing is deserialized before its SHA-256 was compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hybrid_rt.backends import BACKENDS, is_installed
from hybrid_rt.bundle import BUNDLE_NAME, Bundle, BundleFile
from hybrid_rt.cuda_driver import cuda_devices
from hybrid_rt.devices import cuda_device_count, parse_device
from hybrid_rt.errors import DeviceError, ModelFileError, UsageError
from hybrid_rt.onnx_metadata import read_spec
from hybrid_rt.spec import ModelSpec

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
        name, reason = _fastest(bundle, device, backend)
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


def _fastest(bundle: Bundle, device: str, backend: str | None) -> tuple[str, str]:
    kind, index = parse_device(device)
    gpu = kind == "cuda" or (kind == "auto" and cuda_device_count() > 0)
    for name, file in sorted(bundle.files.items(), key=lambda item: _rank(item[1], gpu)):
        source = _certified_by(bundle, name)
        if source is None or not _runs_here(file, gpu, index, backend):
            continue
        through = "" if source == name else f", certified through {source}"
        return name, f"fastest certified file for this {'GPU' if gpu else 'CPU'}{through}"
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


def _runs_here(file: BundleFile, gpu: bool, index: int, backend: str | None) -> bool:
    if file.format == "plan":
        return gpu and backend in (None, "tensorrt", "tensorrt-rtx") and _plan_fits(file, index)
    if backend in ("tensorrt", "tensorrt-rtx"):
        return False
    if gpu:
        return backend != "openvino" and is_installed("onnxruntime")
    if file.precision == "bf16":
        return backend in (None, "openvino") and _cpu_has_bf16()
    return file.precision != "fp16"  # emulated on CPUs: six times slower than fp32


def _plan_fits(file: BundleFile, index: int) -> bool:
    built_for = file.built_for
    if built_for is None:
        return False
    library = "tensorrt-rtx" if built_for.library == "tensorrt_rtx" else "tensorrt"
    if not is_installed(library):
        return False
    return built_for.hardware_compatible or (
        built_for.compute_capability == cuda_devices()[index].compute_capability
    )


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
