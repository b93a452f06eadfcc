"""The process that builds one TensorRT engine; ``build_engine.build_engine`` starts it.

A fault in TensorRT ends its process, and its memory, gigabytes, is freed only when that ends. In
a process of its own neither reaches the caller, and Ctrl-C stops the build at any time. The request
is JSON on standard input. Events are JSON lines on the file descriptor that is the only argument.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

from hybrid_rt.cuda import cuda_device
from hybrid_rt.errors import BackendError, DeviceError, HybridError, ModelFileError
from hybrid_rt.tensorrt.builder.config import BuildRequest, add_profile, configure
from hybrid_rt.tensorrt.builder.layer_types import (
    constrain_types,
    engine_layers,
    network_dtype_report,
)
from hybrid_rt.tensorrt.builder.progress import Emit, make_monitor
from hybrid_rt.tensorrt.library import TensorRTLibrary, load_tensorrt

_NEWEST_OPSET_OF_8 = 17

#: Severities of TensorRT's log, by number; VERBOSE (4) is not kept.
_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO")


def build(request: BuildRequest, library: TensorRTLibrary, emit: Emit) -> dict[str, Any]:
    """Build the engine into ``request.plan_path``.

    Args:
        emit: Takes ``{"log": [severity, text]}`` and ``{"progress": fraction, "phase": name}``.

    Returns:
        ``{"built_for": …, "dtype_report": …}``.

    Raises:
        DeviceError: The library cannot build for this machine's GPU.
        ModelFileError: The parser refuses the graph.
        BackendError: The build fails.
    """
    capability = _target(request, library)
    trt = library.module
    log = _Log(emit)
    logger = _make_logger(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(library.network_flags)
    _parse(trt, network, logger, request.onnx_path, log)
    _check_opset(library, log, request.onnx_path)
    config = builder.create_builder_config()
    configure(library, config, request)
    max_batch = add_profile(builder, network, config, request)
    constrained = constrain_types(library, network, config)
    if constrained:
        log.add(3, f"{constrained} layers held to the types of the ONNX graph")
    dtype_report = network_dtype_report(library, network)
    cache = _load_timing_cache(library, config, request, log)
    monitor = make_monitor(library, emit)
    if monitor is not None:
        config.progress_monitor = monitor
    emit({"progress": 0.0, "phase": "building"})
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{library.label} could not build {request.onnx_path}: {log.errors()}")
    with Path(request.plan_path).open("wb") as file:
        file.write(plan)
    if cache is not None and request.timing_cache is not None:
        _save_timing_cache(config, request.timing_cache)
    if not request.compute_capabilities:  # the plan is for the GPU in this machine
        engine = _inspect(library, logger, plan, host_code=request.version_compatible)
        if engine is not None:
            dtype_report["engine"] = engine
    emit({"progress": 1.0, "phase": "done"})
    return {
        "built_for": {
            "library": library.name,
            "version": library.version,
            "compute_capability": capability,
            "max_batch": max_batch,
            "hardware_compatible": request.hardware_compatible,
            "version_compatible": request.version_compatible,
        },
        "dtype_report": dtype_report,
    }


def _inspect(
    library: TensorRTLibrary, logger: Any, plan: Any, *, host_code: bool
) -> dict[str, Any] | None:
    """Return the types in the engine, from its own inspector."""
    runtime = library.module.Runtime(logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"{library.label} cannot load the engine that it has just built")
    inspector = engine.create_engine_inspector()
    formats = library.module.LayerInformationFormat
    return engine_layers(str(inspector.get_engine_information(formats.JSON)))


class _Log:
    """TensorRT's messages, passed on; errors are kept."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._errors: list[str] = []
        #: The graph's opset, which the parser logs.
        self.opset: int | None = None

    def add(self, severity: int, text: str) -> None:
        found = re.search(r"Opset version:\s*(\d+)", text)
        if found is not None:
            self.opset = int(found[1])
        if severity < 2:
            self._errors.append(text.strip())
        if severity < len(_SEVERITIES):
            self._emit({"log": [_SEVERITIES[severity], text]})

    def errors(self) -> str:
        """Return the first error and the last two on one line: often the cause and the place."""
        kept = self._errors if len(self._errors) < 4 else [self._errors[0], *self._errors[-2:]]
        return " | ".join(kept) or "no error was logged"


def _make_logger(trt: Any, log: _Log) -> Any:
    class PlanLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.add(int(severity), msg)

    return PlanLogger()


def _target(request: BuildRequest, library: TensorRTLibrary) -> str:
    """Return the compute capabilities that the plan is for, such as "8.9" or "8.9,12.0"."""
    if request.compute_capabilities:
        return ",".join(request.compute_capabilities)
    device = cuda_device()
    problem = library.why_not_for(device)
    if problem is not None:
        raise DeviceError(problem)
    return device.compute_capability


def _parse(trt: Any, network: Any, logger: Any, onnx_path: str, log: _Log) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(onnx_path):
        return
    problems = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        place = f"node {error.node()}"
        if hasattr(error, "node_name"):  # TensorRT 10 and newer
            place = f"node {error.node_name()!r} ({error.node_operator()})"
        problems.append(f"{place}: {error.desc()}")
    text = " | ".join(problems) or log.errors()
    raise ModelFileError(f"TensorRT's ONNX parser refuses {onnx_path}: {text}")


def _check_opset(library: TensorRTLibrary, log: _Log, onnx_path: str) -> None:
    """Refuse opset 18 on TensorRT 8, which ignores inputs of axes and reduces over all of them."""
    if library.strongly_typed or log.opset is None or log.opset <= _NEWEST_OPSET_OF_8:
        return
    raise ModelFileError(
        f"{onnx_path} is opset {log.opset}; {library.label} reads {_NEWEST_OPSET_OF_8} at most: "
        f"export again with --opset {_NEWEST_OPSET_OF_8}"
    )


def _load_timing_cache(
    library: TensorRTLibrary, config: Any, request: BuildRequest, log: _Log
) -> Any:
    """Return the cache, which has to live until the engine is built; None if it has no use."""
    if request.timing_cache is None or not library.has_timing_cache:
        return None
    path = Path(request.timing_cache)
    data = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        log.add(2, f"{path} is a timing cache of another GPU or TensorRT; starting an empty one")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _save_timing_cache(config: Any, path: str) -> None:
    from hybrid_rt.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))


def main(argv: list[str] | None = None) -> int:
    """Read a BuildRequest from standard input, build it, and reply on the descriptor."""
    descriptor = int((sys.argv[1:] if argv is None else argv)[0])
    lock = threading.Lock()
    with os.fdopen(descriptor, "w", encoding="utf-8") as pipe:

        def emit(event: dict[str, Any]) -> None:
            with lock:
                pipe.write(json.dumps(event) + "\n")
                pipe.flush()

        try:
            request = BuildRequest(**json.loads(sys.stdin.read()))
            library = load_tensorrt(request.library)  # type: ignore[arg-type]
            emit({"result": build(request, library, emit)})
        except HybridError as err:
            emit({"error": str(err), "type": type(err).__name__})
            return 1
        except OSError as err:
            emit({"error": f"cannot write the plan: {err}", "type": "BackendError"})
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
