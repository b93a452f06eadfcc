"""The profile of this machine, kept in the user's cache folder, or probed now and kept.

A kept profile belongs to one processor, kernel, number of cores, set of environment variables and
library version. If one of them differs, another file is made. One process probes at a time and the
others wait for its result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from hybrid_rt.cpu import instruction_set
from hybrid_rt.cpu.machine import profile_key
from hybrid_rt.cpu.probe import LIMIT, probe
from hybrid_rt.cpu.profile import CpuProfile
from hybrid_rt.errors import UsageError
from hybrid_rt.files import atomic_path, user_cache

_log = logging.getLogger("hybrid_rt")


@lru_cache(maxsize=8)
def kept_profile(group: str, libraries: Sequence[str]) -> CpuProfile:
    """Return the profile of some libraries, whose file has the name ``group`` in it."""
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


def _probe(libraries: Sequence[str], place: str) -> CpuProfile:
    started = time.perf_counter()
    try:
        profile = probe(libraries, instruction_set.clean_environment())
    except (OSError, ValueError) as err:  # ValueError: an interpreter without a path
        note = f"no child process can be started here ({err}), so only fp32 is used"
        _log.warning("CPU profile: %s", note)
        return CpuProfile(origin="fallback", note=note)
    seconds = time.perf_counter() - started
    text = f"CPU profile ({seconds:.1f} s, kept in {place}): {profile.summary()}"
    if profile.cap is None:
        _log.info(text)
    else:
        _log.warning("%s; %s", text, profile.note)
    return profile


def _read(path: Path) -> CpuProfile | None:
    """A kept profile; None if there is none or it cannot be used."""
    try:
        return CpuProfile.from_json(path.read_text(encoding="utf-8"), origin="cached")
    except (OSError, UnicodeDecodeError, UsageError):
        return None


def _cache_folder() -> Path | None:
    """This user's cache folder of hybrid-rt, made if needed; None if it cannot be written."""
    folder = user_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def _path(group: str, libraries: Sequence[str]) -> Path | None:
    folder = _cache_folder()
    if folder is None:
        return None
    text = json.dumps(profile_key(libraries), sort_keys=True)
    return folder / f"cpu-{group}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock of a profile; go on without it if the system has none, or after a while."""
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
