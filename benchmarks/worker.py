"""One row in one process, which runs the parent's commands and returns their times.

Separate processes keep libraries, thread pools and memory apart, so that load time and peak memory
are those of the row alone. The parent sends a command to one worker at a time; the others sleep.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import re
import resource
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np


class RowError(RuntimeError):
    """A row that cannot be loaded or run, with the worker's message."""


def serve(connection: Connection, module: str, name: str, folder: str, started: float) -> None:
    """Run (command, arguments) from the connection until the command "stop"."""
    import importlib

    try:
        images = np.load(Path(folder) / "images.npy")
        files = sorted(str(p) for p in (Path(folder) / "files").iterdir())
        row = importlib.import_module(module).ROWS[name]
        opened = time.perf_counter()
        runner = row.load(Path(folder))
        logits = runner.pixels(images[:1])
        ready = {
            "load_s": time.perf_counter() - opened,
            "first_s": time.time() - started,
            "facts": runner.facts,
            "many": bool(runner.many),
        }
        connection.send(("ready", ready))
        del logits
        while True:
            command, arguments = connection.recv()
            if command == "stop":
                break
            connection.send(("done", run(runner, images, files, command, *arguments)))
    except EOFError:
        pass
    except BaseException as err:
        last = traceback.format_exception_only(err)[-1].strip()
        connection.send(("failed", last))


def run(runner: Any, images: np.ndarray, files: list[str], command: str, *arguments: Any) -> Any:
    """Run one command; return seconds, logits or bytes."""
    if command == "pixels":
        (batch,) = arguments
        return timed(lambda: runner.pixels(images[:batch]))
    if command == "files":
        (batch,) = arguments
        return timed(lambda: runner.files(files[:batch]))
    if command == "offline":
        batch, count = arguments
        batches = [images[:batch]] * count
        if runner.many is not None:
            return timed(lambda: runner.many(batches))
        return timed(lambda: [runner.pixels(one) for one in batches])
    if command == "logits":
        kind, indices = arguments
        if kind == "pixels":
            return runner.pixels(images[list(indices)])
        return runner.files([files[i] for i in indices])
    if command == "memory":
        return peak_memory()
    raise ValueError(f"unknown command {command!r}")


def peak_memory() -> int:
    """Return the most memory this process has held, in bytes.

    ``ru_maxrss`` is the last resort: in a new process it begins with the parent's.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


def timed(call: Any) -> float:
    """Return the seconds that ``call`` takes with the garbage collector off."""
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    finally:
        gc.enable()


class Worker:
    """The parent's end of a worker.

    ``load_s`` are the seconds from opening the model to the first prediction, imports of its
    libraries included; ``first_s`` those from the start of the process.
    """

    def __init__(
        self, name: str, folder: Path, *, module: str = "benchmarks.rows", limit: float = 900
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self.limit = name, limit
        self._connection, child = context.Pipe()
        self._process = context.Process(
            target=serve, args=(child, module, name, str(folder), time.time()), daemon=True
        )
        self._process.start()
        child.close()
        try:
            ready = self._receive()
        except BaseException:
            self.close()
            raise
        self.load_s: float = ready["load_s"]
        self.first_s: float = ready["first_s"]
        self.facts: dict[str, Any] = ready["facts"]
        self.has_many: bool = ready["many"]

    def _receive(self) -> Any:
        if not self._connection.poll(self.limit):
            raise RowError(f"{self.name}: no reply within {self.limit:.0f} s")
        try:
            kind, value = self._connection.recv()
        except (EOFError, ConnectionError) as err:
            self._process.join(5)
            raise RowError(f"{self.name}: process ended, code {self._process.exitcode}") from err
        if kind == "failed":
            raise RowError(f"{self.name}: {value}")
        return value

    def ask(self, command: str, *arguments: Any) -> Any:
        """Run one command in the worker and wait for its reply."""
        try:
            self._connection.send((command, arguments))
        except OSError as err:
            raise RowError(f"{self.name}: process is gone") from err
        return self._receive()

    def close(self) -> None:
        """End the process. May be called twice."""
        if self._process.is_alive():
            with contextlib.suppress(OSError):
                self._connection.send(("stop", ()))
            self._process.join(10)
            if self._process.is_alive():
                self._process.kill()
                self._process.join(10)
        self._connection.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
