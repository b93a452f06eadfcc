"""A deserialized TensorRT plan: its inputs, outputs, optimization profiles and contexts."""

from __future__ import annotations

import collections
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_rt.bundle.interface import check_interface
from hybrid_rt.bundle.manifest import read_model_file
from hybrid_rt.errors import BackendError, ModelFileError
from hybrid_rt.files import atomic_path, user_cache
from hybrid_rt.spec import ModelSpec
from hybrid_rt.tensorrt.context import Tensor
from hybrid_rt.tensorrt.library import TensorRTLibrary, dtype_name

#: One log for each library: TensorRT keeps a process's first logger until the process ends.
_logs: dict[str, RuntimeLog] = {}


class RuntimeLog:
    """TensorRT's last errors and warnings."""

    def __init__(self, trt: Any) -> None:
        lines: collections.deque[tuple[int, str]] = collections.deque(maxlen=40)

        class RuntimeLogger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if int(severity) <= 2:  # INTERNAL_ERROR, ERROR, WARNING
                    lines.append((int(severity), msg.strip()))

        self._lines = lines
        self.logger = RuntimeLogger()

    def clear(self) -> None:
        """Remove the messages logged so far."""
        self._lines.clear()

    def tail(self) -> str:
        """Return the last errors on one line; the last warnings if there are no errors."""
        lines = list(self._lines)
        chosen = [text for severity, text in lines if severity < 2] or [text for _, text in lines]
        return " | ".join(chosen[-3:]) or "TensorRT logged nothing"


def runtime_log(library: TensorRTLibrary) -> RuntimeLog:
    """Return the log of a library in this process."""
    if library.name not in _logs:
        _logs[library.name] = RuntimeLog(library.module)
    return _logs[library.name]


@dataclass(frozen=True)
class OptimizationProfile:
    """The batch sizes that one optimization profile takes, both ends included.

    ``dynamic`` is False for a plan whose batch is fixed in the graph, which has no profile.
    """

    index: int
    smallest: int
    largest: int
    dynamic: bool = True


class PlanEngine:
    """An engine on the GPU. Load, use and close it with the Gpu active."""

    def __init__(self, library: TensorRTLibrary, runtime: Any, engine: Any, path: Path) -> None:
        self.library = library
        self.log = runtime_log(library)
        self._path = path
        self._runtime: Any = runtime  # has to outlive the engine
        self._engine: Any = engine
        self._config: Any = None
        self._cache: Any = None
        self._cache_path: Path | None = None
        self.images, self.outputs = self._tensors()
        self.profiles = self._profiles()
        self.aux_streams = int(engine.num_aux_streams)

    @classmethod
    def load(
        cls,
        library: TensorRTLibrary,
        path: Path,
        spec: ModelSpec,
        *,
        sha256: str | None = None,
        host_code: bool = False,
    ) -> PlanEngine:
        """Deserialize a plan. ``host_code`` allows the lean runtime in version-compatible plans.

        Raises:
            DigestError: The bytes that are read have another digest than ``sha256``.
            ModelFileError: TensorRT refuses the plan, with its reason, or the plan's inputs and
                outputs are not those of ``spec``.
        """
        trt = library.module
        log = runtime_log(library)
        log.clear()
        data = read_model_file(path, sha256)
        runtime = trt.Runtime(log.logger)
        if host_code:
            runtime.engine_host_code_allowed = True
        if hasattr(runtime, "get_engine_validity"):  # TensorRT for RTX
            _check_validity(library, runtime, data, path)
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise ModelFileError(f"{library.label} cannot load the plan {path}: {log.tail()}")
        loaded = cls(library, runtime, engine, path)
        images = loaded.images
        check_interface(
            path,
            spec,
            {images.name: (images.dtype.name, (None, *images.row))},
            (tensor.name for tensor in loaded.outputs),
        )
        return loaded

    def use_runtime_config(self, *, graphs: bool, cache_path: Path | None) -> None:
        """Set how TensorRT for RTX compiles kernels, and where it keeps them.

        It compiles a kernel when it is first used. Kernels for a new batch size are compiled before
        they run, not in the background, so that an output never depends on the time of the call.
        Other libraries need no runtime configuration.
        """
        trt = self.library.module
        if not hasattr(trt, "CudaGraphStrategy"):
            return
        config = self._engine.create_runtime_config()
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if graphs:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if cache_path is not None:
            self._cache = config.create_runtime_cache()
            with contextlib.suppress(OSError):
                self._cache.deserialize(cache_path.read_bytes())
            config.set_runtime_cache(self._cache)
            self._cache_path = cache_path
        self._config = config

    def context(self) -> Any:
        """Return a new execution context. Raises BackendError with TensorRT's reason."""
        if self._config is None:
            context = self._engine.create_execution_context()
        else:
            context = self._engine.create_execution_context(self._config)
        if context is None:
            raise BackendError(
                f"TensorRT cannot make an execution context for {self._path.name}: "
                f"{self.log.tail()}"
            )
        return context

    @property
    def context_bytes(self) -> int:
        """Return the bytes of device memory that each execution context needs."""
        for name in ("device_memory_size_v2", "device_memory_size"):  # since 10.1, and before
            if hasattr(self._engine, name):
                return int(getattr(self._engine, name))
        return 0

    def close(self) -> None:
        """Free the engine, after its contexts. May be called twice."""
        if self._cache is not None and self._cache_path is not None:
            with contextlib.suppress(OSError), atomic_path(self._cache_path) as temporary:
                temporary.write_bytes(memoryview(self._cache.serialize()))
        self._cache = self._config = None
        self._engine = None
        self._runtime = None

    def _tensors(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        engine, modes = self._engine, self.library.module.TensorIOMode
        found: dict[Any, list[Tensor]] = {modes.INPUT: [], modes.OUTPUT: []}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            shape = tuple(int(size) for size in engine.get_tensor_shape(name))
            dtype = dtype_name(engine.get_tensor_dtype(name))
            if dtype not in ("uint8", "float32", "float16") or -1 in shape[1:] or not shape:
                raise ModelFileError(
                    f"{self._path} has a tensor {name} of type {dtype} and shape {shape}; "
                    "expected uint8 or floats with only the batch dynamic: make it with "
                    "hybrid-export"
                )
            tensor = Tensor(name, shape[1:], np.dtype(dtype))
            found[engine.get_tensor_mode(name)].append(tensor)
        if len(found[modes.INPUT]) != 1:
            names = ", ".join(t.name for t in found[modes.INPUT]) or "none"
            raise ModelFileError(f"{self._path} has the inputs {names}; expected images only")
        return found[modes.INPUT][0], tuple(found[modes.OUTPUT])

    def _profiles(self) -> tuple[OptimizationProfile, ...]:
        engine, name = self._engine, self.images.name
        fixed = int(engine.get_tensor_shape(name)[0])
        if fixed != -1:
            return (OptimizationProfile(0, fixed, fixed, dynamic=False),)
        profiles = []
        for index in range(engine.num_optimization_profiles):
            low, _, high = engine.get_tensor_profile_shape(name, index)
            profiles.append(OptimizationProfile(index, int(low[0]), int(high[0])))
        return tuple(profiles)


def cut_batch(
    size: int, profiles: tuple[OptimizationProfile, ...]
) -> list[tuple[int, int, OptimizationProfile]]:
    """Return a batch as chunks ``(start, stop, profile)`` that the profiles take, few as possible.

    A chunk may be smaller than its profile's smallest batch; the caller fills it up.
    """
    biggest = max(profiles, key=lambda p: p.largest)
    chunks, start = [], 0
    while size - start > biggest.largest:
        chunks.append((start, start + biggest.largest, biggest))
        start += biggest.largest
    rest = size - start
    fitting = [p for p in profiles if p.largest >= rest]
    best = min(fitting, key=lambda p: (max(p.smallest - rest, 0), p.largest))
    return [*chunks, (start, size, best)]


def runtime_cache_path(digest: str) -> Path | None:
    """Return the file for a plan's compiled kernels, or None without a folder of the user's own."""
    folder = user_cache() / "tensorrt-rtx"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        ours = folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK)
    except OSError:
        return None
    return folder / f"{digest[:32]}.cache" if ours else None


def _check_validity(library: TensorRTLibrary, runtime: Any, data: bytes, path: Path) -> None:
    trt = library.module
    validity, diagnostics = runtime.get_engine_validity(data)
    if validity != trt.EngineValidity.INVALID:
        return
    reasons = [
        name.lower().replace("_", " ")
        for name, flag in trt.EngineInvalidityDiagnostics.__members__.items()
        if int(diagnostics) & int(flag)
    ]
    raise ModelFileError(
        f"{library.label} cannot run the plan {path} here: {', '.join(reasons) or 'no reason'}; "
        f"{runtime_log(library).tail()}"
    )
