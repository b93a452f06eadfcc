"""The profile of this machine: from memory, from the user's cache, or probed now and kept.

A kept profile belongs to one processor, kernel, number of cores, set of environment variables and
library version: whatever differs makes another file. One process probes at a time and the others
wait for its result. PyTorch is probed apart, since importing PyTorch takes seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hybrid_rt.cpu import instruction_set
from hybrid_rt.cpu.probe import CAP_VARIABLE, LIMIT, probe
from hybrid_rt.cpu.profile import COMBINATIONS, CpuProfile, Measurement
from hybrid_rt.errors import UsageError
from hybrid_rt.files import atomic_path

#: "off", or a file with a profile.
OVERRIDE = "HYBRID_RT_CPU_PROFILE"

_log = logging.getLogger("hybrid_rt")

#: What is probed together: libraries by the group's name.
_GROUPS = {"runtime": ("onnxruntime", "openvino"), "torch": ("torch",)}
_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "torch": ("torch",),
}
#: Goes up with the workload or the format, so that old files are not read.
_VERSION = 1

#: Variables that change what the libraries run.
_VARIABLES = (CAP_VARIABLE, "DNNL_MAX_CPU_ISA", "LD_PRELOAD", "OMP_NUM_THREADS", "KMP_AFFINITY")


def cpu_profile(*libraries: str) -> CpuProfile:
    """What the libraries (all but PyTorch by default) run on this CPU. Cached by the process.

    The first call on a machine takes some 3 s. Raises UsageError for an override that cannot be
    read.
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
            profile = profile.merged(_profile_of(group, installed))
    return profile


def prepare(library: str) -> str | None:
    """Set the cap on the instruction set before ``library`` is imported, if it is needed.

    Returns the cap, None if this CPU needs none. Only a CPU whose flags have AMX is probed for it.
    Raises UsageError as cpu_profile does.
    """
    if not _says_amx() and not os.environ.get(OVERRIDE):
        return None
    cap = cpu_profile(library).cap
    if cap is not None:
        instruction_set.set_cap(cap)
    return cap


def usable(library: str, precision: str) -> bool:
    """Whether a precision on a library works in this process."""
    return why_unusable(library, precision) is None


def why_unusable(library: str, precision: str) -> str | None:
    """Why a combination cannot be used in this process, as one line; None if it can.

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
    """The profile of the runtime's libraries as this process can use them.

    A combination that needs a cap which is not in place counts as one that dies.
    """
    profile = cpu_profile()
    found = {}
    for name, measurement in profile.measurements.items():
        reason = why_unusable(*name.split(" ")) if measurement.status == "ran" else None
        found[name] = measurement if reason is None else Measurement(status="died", detail=reason)
    return replace(profile, measurements=found)


def _says_amx() -> bool:
    """Whether the processor's flags have AMX, which is what the cap takes away."""
    return "amx_tile" in processor()[1]


@lru_cache(maxsize=8)
def _profile_of(group: str, libraries: Sequence[str]) -> CpuProfile:
    path = _path(group, libraries)
    if path is None:
        return _probe(libraries, "nowhere: no cache folder can be written")
    with _one_at_a_time(path):
        kept = _read(path)
        if kept is not None:
            return kept
        profile = _probe(libraries, str(path))
        if profile.origin == "probed":
            with contextlib.suppress(OSError), atomic_path(path) as temporary:
                temporary.write_text(
                    json.dumps(profile.to_dict(), indent=1) + "\n", encoding="utf-8"
                )
        return profile


def _probe(libraries: Sequence[str], where: str) -> CpuProfile:
    started = time.perf_counter()
    try:
        profile = probe(libraries, instruction_set.clean_environment())
    except (OSError, ValueError) as err:  # ValueError: an interpreter without a path
        note = f"no child process can be started here ({err}), so only fp32 is used"
        _log.warning("CPU profile: %s", note)
        return CpuProfile(origin="fallback", note=note)
    seconds = time.perf_counter() - started
    text = f"CPU profile ({seconds:.1f} s, kept in {where}): {profile.summary()}"
    if profile.cap is None:
        _log.info(text)
    else:
        _log.warning("%s; %s", text, profile.note)
    return profile


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


def _read(path: Path) -> CpuProfile | None:
    """A kept profile; None where there is none or it cannot be used."""
    try:
        return CpuProfile.from_json(path.read_text(encoding="utf-8"), origin="cached")
    except (OSError, UnicodeDecodeError, UsageError):
        return None


def cache_folder() -> Path | None:
    """This user's cache folder of hybrid-rt, made if needed; None where it cannot be written."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "hybrid-rt"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def _path(group: str, libraries: Sequence[str]) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    text = json.dumps(_key(libraries), sort_keys=True)
    return folder / f"cpu-{group}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def _key(libraries: Sequence[str]) -> dict[str, Any]:
    """What a profile depends on."""
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


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=1)
def processor() -> tuple[str, frozenset[str]]:
    """The processor's name and flags, as Linux returns them; elsewhere only a name."""
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


def _library_version(name: str) -> str:
    for package in _PACKAGES[name]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return "unknown"


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock of a profile; go on without it where the system has none, or after a while."""
    try:
        import fcntl

        file = path.with_suffix(".lock").open("a")
    except (ImportError, OSError):
        yield
        return
    with file:
        end = time.monotonic() + 3 * LIMIT
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
