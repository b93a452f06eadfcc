"""Files that appear together: made in a hidden folder beside, renamed when all are right."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from hybrid_rt.bundle.manifest import BUNDLE_NAME, Bundle
from hybrid_rt.errors import ExportError, HybridError, UsageError
from hybrid_rt.uncertainty.ood import OodEntry

_PREFIX = ".hybrid-export-"


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Yield a folder inside ``output`` to write to, which is removed when the block ends.

    Raises UsageError if ``output`` cannot be written to. A full disk inside the block becomes an
    ExportError; SIGTERM is handled like Ctrl+C. What a killed export left is removed first.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        _sweep(output)
        folder = output / f"{_PREFIX}{os.getpid()}"
        folder.mkdir()
    except OSError as err:
        raise UsageError(
            f"cannot write to {output} ({err.strerror}); expected a folder that you may write to: "
            "choose another with --output"
        ) from err
    try:
        with _interruptible():
            yield folder
    except OSError as err:
        if isinstance(err, HybridError) or err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(output).free >> 20
        raise ExportError(
            f"the disk of {output} is full ({free} MiB free); nothing was changed there: make room "
            "(the full-size network takes about 1 GB a run with every precision) or choose another "
            "--output"
        ) from err
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(bundle: Bundle, staged: Path, output: Path, sidecars: Sequence[str] = ()) -> Bundle:
    """Move the staged files of a bundle to ``output``, ``model.json`` last; returns it as saved.

    ``sidecars`` are staged files that go with it and are no models. Files that an earlier export
    listed there and this one does not are removed: they belong to another model. Between the first
    rename and the last an interrupted reader sees digests that do not match, never half a file.
    """
    stale = _earlier_files(output) - {*bundle.files, *sidecars}
    bundle.save(staged)
    names = [*bundle.files, *([bundle.golden.file] if bundle.golden else []), *sidecars]
    with _deferred_signals():
        for name in names:
            _fsync(staged / name)
            (staged / name).replace(output / name)
        (staged / BUNDLE_NAME).replace(output / BUNDLE_NAME)
        for name in stale:
            (output / name).unlink(missing_ok=True)
        _fsync(output)
    return Bundle.load(output)


def _earlier_files(output: Path) -> set[str]:
    try:
        earlier = Bundle.load(output)
        entry = OodEntry.of(earlier.spec)
    except HybridError:
        return set()
    return {*earlier.files, *([entry.file] if entry else [])}


def _sweep(output: Path) -> None:
    """Remove staging folders of processes that are gone."""
    for folder in output.glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX)
        if not pid.isdigit() or not _is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    """Return whether another process has that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return pid != os.getpid()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl+C does, so that what it staged is removed."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread, which alone may handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _deferred_signals() -> Iterator[None]:
    """Let the renames, which take milliseconds, finish before an interrupt is handled."""
    signals = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
