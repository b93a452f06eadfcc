"""The environment report: versions, CPU, GPU, what each backend can do here, and what is missing.

python -m hybrid_rt
python -m hybrid_rt --json > environment.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hybrid_rt.backends.gpu_support import onnxruntime_gpu_problem
from hybrid_rt.cpu import CpuProfile, cores, cpu_profile, processor
from hybrid_rt.cuda import cuda_devices, driver_problem, provider_problem
from hybrid_rt.errors import HybridError
from hybrid_rt.tensorrt.library import LibraryName, load_tensorrt, title

_PACKAGES = (
    "hybrid-rt",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "pycuda",
    "cuda-bindings",
    "pydicom",
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "datasets",
)


_NO_GPU = "no NVIDIA GPU responds, see above"


@dataclass(frozen=True)
class Ability:
    """Something the project can do, whether it works here, and the command that makes it work."""

    name: str
    ready: bool
    detail: str
    fix: str | None = None


def report() -> dict[str, Any]:
    """Return the environment as JSON values. The CPU is probed if that was not done before."""
    model, flags = processor()
    profile = cpu_profile()
    if os.environ.get("HYBRID_RT_CPU_PROFILE", "") == "" and _found("torch"):
        profile = profile.merged(cpu_profile("torch"))
    interesting = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "cpu": {
            "model": model,
            "cores": cores(),
            "flags": [flag for flag in interesting if flag in flags],
            "profile": profile.to_dict(),
        },
        "gpu": _gpu(),
        "abilities": [asdict(ability) for ability in abilities(profile)],
    }


def packages() -> dict[str, str]:
    """Return the installed versions of the packages that matter, by name."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def abilities(profile: CpuProfile) -> list[Ability]:
    """Return what works here: inference first, then DICOM, training and export."""
    return [
        *(_on_cpu(name, profile) for name in ("openvino", "onnxruntime")),
        _checked("ONNX Runtime on a GPU", _cuda_problem, "pip install 'hybrid-rt[gpu]'"),
        *(_tensorrt(name) for name in ("tensorrt", "tensorrt_rtx")),
        _module("DICOM files", "pydicom", "dicom"),
        _module("training", "timm", "train"),
        _module("export", "onnx", "export"),
    ]


def text(data: dict[str, Any]) -> str:
    """Return the report as text for people."""
    cpu, gpu = data["cpu"], data["gpu"]
    lines = [
        f"hybrid-rt {data['packages'].get('hybrid-rt', 'not installed')}, Python {data['python']}, "
        f"{data['platform']}",
        f"CPU: {cpu['model']}, {cpu['cores']} cores, {' '.join(cpu['flags']) or 'no AVX2'}",
    ]
    measurements = cpu["profile"]["measurements"]
    if measurements:
        lines.append("  a small ViT + CNN network on it (PyTorch: a training step):")
    for name, one in measurements.items():
        speed = "" if one["milliseconds"] is None else f"{one['milliseconds']:8.1f} ms"
        lines.append(f"  {name:22}{one['status']:7}{speed} {one['detail']}".rstrip())
    if cpu["profile"]["cap"]:
        lines.append(f"  needs ONEDNN_MAX_CPU_ISA={cpu['profile']['cap']}, which is set by itself")
    lines += [f"  note: {cpu['profile']['note']}"] if cpu["profile"]["note"] else []
    lines += [f"GPU: {device}" for device in gpu["devices"]] or [f"GPU: none; {gpu['problem']}"]
    lines.append("Packages: " + ", ".join(f"{n} {v}" for n, v in data["packages"].items()))
    lines.append("")
    for ability in data["abilities"]:
        mark = "yes" if ability["ready"] else "no "
        lines.append(f"{mark}  {ability['name']}: {ability['detail']}")
        if not ability["ready"] and ability["fix"]:
            lines.append(f"       {ability['fix']}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; return 0, or 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m hybrid_rt",
        description="Report versions, CPU, GPU, and what each backend can do on this machine.",
        epilog="example: python -m hybrid_rt --json > environment.json",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON, as for a bug report")
    args = parser.parse_args(argv)
    try:
        data = report()
    except HybridError as err:
        print(f"python -m hybrid_rt: {err}", file=sys.stderr)
        return 2
    print(json.dumps(data, indent=2, ensure_ascii=False) if args.json else text(data))
    return 0


def _on_cpu(library: str, profile: CpuProfile) -> Ability:
    name = {"openvino": "OpenVINO on the CPU", "onnxruntime": "ONNX Runtime on the CPU"}[library]
    if not _found(library):
        return Ability(name, False, f"{library} is not installed", "pip install 'hybrid-rt[cpu]'")
    runs = [
        combination.partition(" ")[2]
        for combination, one in profile.measurements.items()
        if combination.startswith(f"{library} ") and one.status == "ran"
    ]
    return Ability(name, True, ", ".join(runs) or "fp32")


def _checked(name: str, problem: Callable[[], str | None], fix: str) -> Ability:
    found = problem()
    return Ability(name, found is None, found or "ready", None if found is None else fix)


def _cuda_problem() -> str | None:
    if driver_problem() is not None:
        return _NO_GPU
    problem = onnxruntime_gpu_problem()
    return None if problem is None else problem.partition("; run: ")[0]


def _tensorrt(name: LibraryName) -> Ability:
    try:
        library = load_tensorrt(name)
    except HybridError as err:
        reason, _, fix = str(err).partition("; ")
        return Ability(f"{title(name)} engines", False, reason, fix or None)
    problem = provider_problem() if driver_problem() is None else _NO_GPU
    if problem is None:
        return Ability(f"{title(name)} engines", True, library.label)
    builds = " (engines for other machines can be built)" if library.ahead_of_time else ""
    return Ability(f"{title(name)} engines", False, f"{library.label}{builds}; {problem}")


def _module(name: str, module: str, extra: str) -> Ability:
    if _found(module):
        return Ability(name, True, "installed")
    fix = f"pip install 'hybrid-rt[{extra}]'"
    return Ability(name, False, f"{module} is not installed", fix)


def _gpu() -> dict[str, Any]:
    problem = driver_problem()
    devices = [] if problem is not None else [str(device) for device in cuda_devices()]
    return {"devices": devices, "problem": problem}


def _found(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    sys.exit(main())
