"""The cap on the instruction set: put into the environment before a library is imported.

oneDNN reads ONEDNN_MAX_CPU_ISA when the library that contains it is first used, and PyTorch and
OpenVINO each contain their own. Measured: a cap that is set before ``import openvino`` holds; one
that is set after it does not. So a library that the caller imported before the cap was set can end
the process; ``in_place`` checks that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hybrid_rt.cpu.probe import CAP, CAP_VARIABLE

#: Set beside the cap, so that a child process can tell it from one that a person has set.
SET_BY_US = "HYBRID_RT_CPU_CAP_SET"

#: Libraries that were there before the cap was set in this process.
_too_early: set[str] = set()


def set_cap(value: str) -> None:
    """Put the cap into this process's environment, unless a person has put one there."""
    if CAP_VARIABLE in os.environ:
        return
    _too_early.update(name for name in ("torch", "openvino") if name in sys.modules)
    os.environ[CAP_VARIABLE] = value
    os.environ[SET_BY_US] = "1"


def in_place(library: str) -> bool:
    """Return False if the library was imported without a cap, as far as can be found out."""
    if library not in sys.modules:
        return True  # ``prepare`` comes before its import
    if CAP_VARIABLE not in os.environ or library in _too_early:
        return False
    return SET_BY_US in os.environ or _in_first_environment()


def advice(library: str) -> str:
    """Return what to do about a library that was imported too early."""
    return (
        f"{library} was imported before hybrid_rt could set {CAP_VARIABLE}: start the process with "
        f"{CAP_VARIABLE}={CAP} in its environment, or call hybrid_rt.cpu.prepare({library!r}) "
        f"before importing {library}"
    )


def clean_environment() -> dict[str, str]:
    """Return this process's environment without a cap that this project has set."""
    environment = dict(os.environ)
    if environment.pop(SET_BY_US, None) is not None:
        environment.pop(CAP_VARIABLE, None)
    return environment


def _in_first_environment() -> bool:
    """Whether the process was started with the variable; False if that is unknown."""
    try:
        data = Path("/proc/self/environ").read_bytes()
    except OSError:
        return False
    return any(entry.startswith(f"{CAP_VARIABLE}=".encode()) for entry in data.split(b"\0"))
