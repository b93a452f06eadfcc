"""Comparison of a plan with this machine, made before TensorRT reads the file.

A plan runs on the GPU architecture and with the TensorRT version that it was built for, unless it
was built hardware- or version-compatible.
"""

from __future__ import annotations

import re

from hybrid_rt.bundle.manifest import BuiltFor
from hybrid_rt.cuda import CudaDevice
from hybrid_rt.tensorrt.library import title


def gpu_mismatch(built_for: BuiltFor, device: CudaDevice) -> str | None:
    """Return how the plan's GPU and this one differ, naming both; None if the plan fits."""
    wanted = built_for.compute_capability.split(",")
    if device.compute_capability in wanted:
        return None
    if built_for.hardware_compatible and _numbers(device.compute_capability) >= (8, 0):
        return None
    return f"was built for compute capability {' or '.join(wanted)}; this machine has {device}"


def version_mismatch(built_for: BuiltFor, version: str) -> str | None:
    """Return how the plan's TensorRT and this one differ, naming both; None if the plan fits.

    Versions are equal if their first three numbers are. A version-compatible plan also runs with
    later releases; TensorRT itself checks which of them.
    """
    built, here = _numbers(built_for.version)[:3], _numbers(version)[:3]
    if built == here:
        return None
    if built_for.version_compatible and built <= here:
        return None
    name = title(built_for.library)
    return f"was built with {name} {built_for.version}; this machine has {name} {version}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
