"""What a CPU profile depends on: the processor, its cores, the kernel and library versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hybrid_rt.cpu import instruction_set
from hybrid_rt.cpu.probe import CAP_VARIABLE
from hybrid_rt.cpu.profile import COMBINATIONS

_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "torch": ("torch",),
}
#: Goes up with the workload or the format, so that old files are not read.
_VERSION = 1

#: Variables that change what the libraries run.
_VARIABLES = (CAP_VARIABLE, "DNNL_MAX_CPU_ISA", "LD_PRELOAD", "OMP_NUM_THREADS", "KMP_AFFINITY")


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=1)
def processor() -> tuple[str, frozenset[str]]:
    """Return the processor's name and flags, as Linux lists them; elsewhere only a name."""
    model, flags = platform.processor() or platform.machine(), frozenset[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = frozenset(value.split())
                break
    return model, flags


def profile_key(libraries: Sequence[str]) -> dict[str, Any]:
    """Return what a profile of these libraries depends on, as JSON values."""
    environment = instruction_set.clean_environment()
    model, flags = processor()
    return {
        "version": _VERSION,
        "combinations": {name: COMBINATIONS[name] for name in libraries},
        "libraries": {name: _library_version(name) for name in libraries},
        "processor": model,
        "flags": sorted(flags),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": cores(),
        "environment": {name: environment.get(name) for name in _VARIABLES},
    }


def _library_version(name: str) -> str:
    for package in _PACKAGES[name]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return "unknown"
