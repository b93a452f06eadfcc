"""ONNX graph to TensorRT plan, on this machine or ahead of time for another.

built = build_engine("model.fp16.onnx", "model.plan")                     # for this machine's GPU
built = build_engine(onnx, "model.plan", compute_capabilities=["SM89"])  # TensorRT-RTX, no GPU

The build runs in a child process of our own, not in ``concurrent.futures`` or ``multiprocessing``.
Their child runs the caller's main script again, so a script without ``if __name__ == "__main__"``
fails. A broken process pool reports neither the child's signal nor its output, and stops a running
child only from Python 3.14 on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import hybrid_rt.errors
from hybrid_rt.cuda import cuda_device, driver_problem
from hybrid_rt.errors import BackendError, BackendMissingError, ModelFileError, UsageError
from hybrid_rt.files import atomic_path
from hybrid_rt.processes import child_command
from hybrid_rt.tensorrt.builder.config import BuildRequest
from hybrid_rt.tensorrt.library import (
    LibraryName,
    compute_capability_text,
    how_to_get,
    installed_libraries,
    load_tensorrt,
    title,
)

#: Called with the fraction done (0 to 1) and the name of the phase.
Progress = Callable[[float, str], None]

_LARGEST_BATCH = 4096


@dataclass(frozen=True)
class BuiltEngine:
    """A plan on disk, with the fields of its ``BuiltFor`` and its dtype report.

    ``log`` is TensorRT's log of the build, one message per line.
    """

    path: Path
    built_for: dict[str, Any]
    dtype_report: dict[str, Any]
    log: str


def build_engine(
    onnx_path: str | os.PathLike[str],
    plan_path: str | os.PathLike[str],
    *,
    library: LibraryName | Literal["auto"] = "auto",
    compute_capabilities: Sequence[str] = (),
    device: str = "cuda:0",
    max_batch: int = 8,
    opt_batch: int | None = None,
    workspace_bytes: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    progress: Progress | None = None,
    log_path: str | os.PathLike[str] | None = None,
) -> BuiltEngine:
    """Build ``plan_path`` from an ONNX graph, in a child process, in the precision of the graph.

    The plan appears complete or not at all.

    Args:
        compute_capabilities: GPUs to build for, such as "SM89" or "8.9", with TensorRT for RTX and
            without a GPU in this machine. By default the plan is for ``device``.
        max_batch: The largest batch that the plan takes.
        opt_batch: The batch size that runs fastest; ``max_batch`` by default.
        timing_cache: A file that is read and updated.
        log_path: A file for TensorRT's log, written even if the build fails.

    Raises:
        UsageError: An option is invalid, or two exclude each other.
        BackendMissingError: The library is not installed.
        DeviceError: The machine has no such GPU.
        ModelFileError: The parser refuses the graph.
        BackendError: The build fails.
    """
    onnx_path, plan_path = Path(onnx_path), Path(plan_path)
    if not onnx_path.is_file():
        raise ModelFileError(f"{onnx_path} is not a file; expected an ONNX graph")
    if not 1 <= max_batch <= _LARGEST_BATCH:
        raise UsageError(f"max_batch is {max_batch}; expected 1 to {_LARGEST_BATCH}")
    opt_batch = max_batch if opt_batch is None else opt_batch
    if not 1 <= opt_batch <= max_batch:
        raise UsageError(f"opt_batch is {opt_batch}; expected 1 to max_batch, {max_batch}")
    if workspace_bytes is not None and workspace_bytes < 0:
        raise UsageError(f"workspace_bytes is {workspace_bytes}; expected 0 or more")
    capabilities = sorted(
        {compute_capability_text(text) for text in compute_capabilities},
        key=lambda text: [int(number) for number in text.split(".")],
    )
    chosen = _choose_library(library, bool(capabilities))
    if chosen == "tensorrt_rtx" and hardware_compatible:
        raise UsageError(
            "hardware_compatible does not apply to TensorRT-RTX; list the GPUs instead, such as "
            "compute_capabilities=('SM86', 'SM89')"
        )
    environment = dict(os.environ)
    if not capabilities:
        index = cuda_device(device).index  # raises before the child starts
        if index > 0:  # TensorRT builds for the first visible GPU
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            environment["CUDA_VISIBLE_DEVICES"] = (
                visible.split(",")[index] if visible else str(index)
            )
    with atomic_path(plan_path) as temporary:
        request = BuildRequest(
            onnx_path=str(onnx_path.resolve()),
            plan_path=str(temporary.resolve()),
            library=chosen,
            compute_capabilities=capabilities,
            max_batch=max_batch,
            opt_batch=opt_batch,
            workspace_bytes=workspace_bytes,
            timing_cache=None if timing_cache is None else str(Path(timing_cache).resolve()),
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
        )
        kept = None if log_path is None else Path(log_path)
        result, log = _run_worker(request, environment, progress, kept)
    return BuiltEngine(plan_path, result["built_for"], result["dtype_report"], log)


def why_no_engine(
    library: LibraryName | Literal["auto"] = "auto", *, ahead_of_time: bool = False
) -> str | None:
    """Return why ``build_engine`` cannot work here and what to do, on one line, or None."""
    try:
        chosen = _choose_library(library, ahead_of_time)
    except BackendMissingError as err:
        return str(err)
    if ahead_of_time:
        return None
    problem = driver_problem()
    if problem is None:
        try:  # TensorRT for RTX builds for some generations of GPUs only
            return load_tensorrt(chosen).why_not_for(cuda_device())
        except BackendMissingError as err:
            return str(err)
    return (
        f"{problem}. Build on the machine with the GPU, or ahead of time with TensorRT-RTX "
        "(--tensorrt-rtx SM89)"
    )


def _choose_library(library: LibraryName | Literal["auto"], ahead_of_time: bool) -> LibraryName:
    found = installed_libraries()
    if library == "auto":
        library = "tensorrt_rtx" if ahead_of_time else (found or ("tensorrt",))[0]
    elif library not in ("tensorrt", "tensorrt_rtx"):
        raise UsageError(f"library is {library!r}; expected auto, tensorrt or tensorrt_rtx")
    if ahead_of_time and library != "tensorrt_rtx":
        raise UsageError(
            "TensorRT builds only for the GPU in this machine; compute_capabilities needs "
            "library='tensorrt_rtx'"
        )
    if library not in found:
        raise BackendMissingError(
            f"{title(library)} is not installed, so no engine can be built: {how_to_get(library)}"
        )
    return library


def _run_worker(
    request: BuildRequest,
    environment: dict[str, str],
    progress: Progress | None,
    log_path: Path | None,
) -> tuple[dict[str, Any], str]:
    """Start the worker, pass its progress on, and return its result and log.

    Events come through a pipe of their own, since TensorRT and CUDA print to both standard streams.
    """
    reader, writer = os.pipe()
    log: list[str] = []
    reply: dict[str, Any] = {}
    with tempfile.TemporaryFile() as output, os.fdopen(reader, encoding="utf-8") as events:
        try:
            worker = subprocess.Popen(
                child_command("hybrid_rt.tensorrt.builder.worker", str(writer)),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(writer,),
                env=environment,
            )
        finally:
            os.close(writer)
        try:
            assert worker.stdin is not None
            with contextlib.suppress(BrokenPipeError), worker.stdin as stdin:
                stdin.write(json.dumps(asdict(request)).encode())  # the worker may be dead already
            for line in events:
                event = json.loads(line)
                if "log" in event:
                    log.append(f"[{event['log'][0]}] {event['log'][1]}")
                elif "progress" in event and progress is not None:
                    progress(event["progress"], event["phase"])
                elif "result" in event or "error" in event:
                    reply = event
            worker.wait()
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            output.seek(0)
            log += output.read().decode("utf-8", "replace").splitlines()
            text = "\n".join(log)
            if log_path is not None:
                with atomic_path(log_path) as temporary:
                    temporary.write_text(text + "\n", encoding="utf-8")
    if "error" in reply:
        kind = getattr(hybrid_rt.errors, reply["type"], BackendError)
        raise kind(reply["error"])
    if "result" not in reply:
        raise BackendError(_describe_end(worker.returncode, log))
    result: dict[str, Any] = reply["result"]
    return result, text


def _describe_end(code: int, log: list[str]) -> str:
    how = f"exit code {code}"
    if code < 0:
        try:
            how = signal.Signals(-code).name
        except ValueError:
            how = f"signal {-code}"
    hint = "; out of memory?" if code == -signal.SIGKILL else ""
    tail = " | ".join(line for line in log[-3:]) or "nothing was logged"
    return f"TensorRT ended with {how} while it built the engine{hint}: {tail}"
