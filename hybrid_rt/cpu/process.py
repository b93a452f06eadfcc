"""What this process can use of the CPU: profile, cap on the instruction set, override."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

from hybrid_rt.cpu import instruction_set
from hybrid_rt.cpu.cache import kept_profile
from hybrid_rt.cpu.machine import processor
from hybrid_rt.cpu.profile import CpuProfile, Measurement
from hybrid_rt.errors import UsageError

#: "off", or a file with a profile.
OVERRIDE = "HYBRID_RT_CPU_PROFILE"

#: Libraries that are probed together. Importing PyTorch takes seconds, so it is probed apart.
_GROUPS = {"runtime": ("onnxruntime", "openvino"), "torch": ("torch",)}


def cpu_profile(*libraries: str) -> CpuProfile:
    """Return what the libraries run on this CPU; by default all but PyTorch.

    The process keeps the result. The first call on a machine takes some 3 s. Raises UsageError for
    an override that cannot be read.
    """
    override = os.environ.get(OVERRIDE, "")
    if override == "off":
        return CpuProfile(origin="off", note=f"not probed ({OVERRIDE}=off)")
    if override:
        return _from_file(Path(override))
    groups = [g for g, names in _GROUPS.items() if not libraries or set(names) & set(libraries)]
    if not libraries:
        groups.remove("torch")
    profile = CpuProfile()
    for group in groups:
        installed = tuple(name for name in _GROUPS[group] if importlib.util.find_spec(name))
        if installed:
            profile = profile.merged(kept_profile(group, installed))
    return profile


def prepare(library: str) -> str | None:
    """Set the cap on the instruction set before ``library`` is imported, if it is needed.

    Returns the cap, or None if this CPU needs none. Only a CPU whose flags have AMX is probed.
    Raises UsageError as cpu_profile does.
    """
    if not _says_amx() and not os.environ.get(OVERRIDE):
        return None
    cap = cpu_profile(library).cap
    if cap is not None:
        instruction_set.set_cap(cap)
    return cap


def usable(library: str, precision: str) -> bool:
    """Return whether a precision on a library works in this process."""
    return why_unusable(library, precision) is None


def why_unusable(library: str, precision: str) -> str | None:
    """Return why a combination cannot be used in this process, as one line; None if it can.

    One that needs the cap is unusable if the library was imported without it.
    """
    if precision == "fp32":  # runs everywhere; nothing has to be probed
        return None
    profile = cpu_profile(library)
    reason = profile.why_not(library, precision)
    if reason is not None or profile.cap is None:
        return reason
    if library == "onnxruntime":  # sets its tiles up by itself
        return None
    if instruction_set.in_place(library):
        return None
    return f"{precision} on {library} ends the process on this CPU; " + instruction_set.advice(
        library
    )


def process_profile() -> CpuProfile:
    """Return the profile of the runtime's libraries as this process can use them.

    A combination that needs a cap which is not in place counts as one that dies.
    """
    profile = cpu_profile()
    found = {}
    for name, measurement in profile.measurements.items():
        reason = why_unusable(*name.split(" ")) if measurement.status == "ran" else None
        found[name] = measurement if reason is None else Measurement(status="died", detail=reason)
    return replace(profile, measurements=found)


def _says_amx() -> bool:
    """Whether the processor's flags have AMX, which the cap takes away."""
    return "amx_tile" in processor()[1]


def _from_file(path: Path) -> CpuProfile:
    try:
        if path.stat().st_size > 1 << 20:
            raise UsageError(f"{OVERRIDE} is {path}, which is larger than 1 MiB")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(
            f"{OVERRIDE} is {path}, which cannot be read ({err}); expected 'off' or a profile that "
            "python -m hybrid_rt --json printed"
        ) from err
    try:
        data = json.loads(text)
        # The report of python -m hybrid_rt --json has the profile among other things.
        data = data["cpu"]["profile"] if isinstance(data, dict) and "cpu" in data else data
        return CpuProfile.from_dict(data, origin="file")
    except (ValueError, KeyError, TypeError) as err:
        raise UsageError(f"{OVERRIDE} is {path}, which is no CPU profile: {err}") from err
