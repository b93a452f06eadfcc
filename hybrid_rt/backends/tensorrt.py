"""TensorRT 8.6, 10, 11 and TensorRT for RTX: plans on NVIDIA GPUs.

The GPU, the plan's GPU and the plan's version are checked before TensorRT sees the file. Each
caller of ``run`` borrows an execution context (with its stream and pinned buffers); outputs are
copies.
"""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.backends.base import SessionOptions
from hybrid_rt.bundle.manifest import BundleFile
from hybrid_rt.cuda import CudaDevice, Gpu, cuda_device, load_bindings, open_gpu
from hybrid_rt.errors import BackendError, DeviceError, ModelFileError, UsageError
from hybrid_rt.files import sha256_file
from hybrid_rt.tensorrt.compatibility import gpu_mismatch, version_mismatch
from hybrid_rt.tensorrt.context import ExecutionContext
from hybrid_rt.tensorrt.contexts import ContextPool
from hybrid_rt.tensorrt.engine import OptimizationProfile, PlanEngine, cut_batch, runtime_cache_path
from hybrid_rt.tensorrt.library import LibraryName, TensorRTLibrary, load_tensorrt, title
from hybrid_rt.tensorrt.rebuild import rebuild_advice, rebuild_engine

#: The most callers that run at the same time; others wait. Each context has its own memory.
MAX_CONTEXTS = 4


class TensorRTSession:
    """One plan on one GPU, for any number of threads."""

    backend = "tensorrt"

    def __init__(
        self, gpu: Gpu, engine: PlanEngine, *, graphs: bool, contexts: int, precision: str | None
    ) -> None:
        self.device = f"cuda:{gpu.device.index}"
        self.output_names = tuple(tensor.name for tensor in engine.outputs)
        self._row = engine.images.row
        self._profiles = engine.profiles
        own_graphs = hasattr(engine.library.module, "CudaGraphStrategy")  # TensorRT for RTX
        bindings = load_bindings() if graphs and not own_graphs else None

        def make_context(profile: OptimizationProfile) -> ExecutionContext:
            return ExecutionContext(
                gpu,
                engine.context(),
                profile=profile.index if profile.dynamic else None,
                largest=profile.largest,
                images=engine.images,
                outputs=engine.outputs,
                aux_streams=engine.aux_streams,
                bindings=bindings,
                explain=engine.log.tail,
            )

        self._contexts = ContextPool(gpu, make_context, engine.close, contexts)
        self._close = weakref.finalize(self, self._contexts.close)
        try:
            problem = self._warm_up()
        except BaseException:
            self.close()
            raise
        if not graphs:
            problem = "turned off"
        elif problem is None and bindings is None and not own_graphs:
            problem = "cuda-bindings is not installed"
        words = [engine.library.label, *([precision] if precision else []), gpu.device.name]
        words.append(f"memory through {gpu.provider.name}")
        words.append("CUDA graphs" if problem is None else f"no CUDA graphs ({problem})")
        #: The configuration in use, in a few words.
        self.detail = ", ".join(words)
        #: The number of simultaneous calls of ``run`` that raises the throughput.
        self.parallel = 1

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> TensorRTSession:
        """See ``open_trt``."""
        return open_trt(path, options)

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """See Session.run."""
        chunks = [
            self._run_chunk(images[start:stop], profile)
            for start, stop, profile in cut_batch(len(images), self._profiles)
        ]
        if len(chunks) == 1:
            return chunks[0]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def close(self) -> None:
        """See Session.close. Calls under way in other threads finish first."""
        self._close()

    def _run_chunk(
        self, images: NDArray[np.uint8], profile: OptimizationProfile
    ) -> dict[str, NDArray[np.float32]]:
        rows = len(images)
        if rows < profile.smallest:  # the plan's batch is fixed: fill it up
            filling = np.zeros((profile.smallest - rows, *self._row), np.uint8)
            images = np.concatenate([images, filling])
        with self._contexts.borrow(profile, len(images)) as context:
            outputs = context.run(images)
        if rows < len(images):
            return {name: values[:rows].copy() for name, values in outputs.items()}
        return outputs

    def _warm_up(self) -> str | None:
        """Run the smallest batch until its graph is replayed; return why it has none, or None."""
        profile = self._profiles[0]
        images = np.zeros((profile.smallest, *self._row), np.uint8)
        with self._contexts.borrow(profile) as context:
            for _ in range(4):  # set up, record, replay twice
                context.run(images)
            return context.graph_problem


def open_trt(path: Path, options: SessionOptions, *, graphs: bool = True) -> TensorRTSession:
    """Open a plan whose digest was checked.

    If the plan does not fit this machine and ``options.rebuild`` is set, the engine is built again
    from the bundle's ONNX file.

    Raises:
        DeviceError: The machine has no GPU, or the plan is for another one.
        BackendMissingError: TensorRT or the library for GPU memory is not installed.
        BackendError: The plan is of another TensorRT version.
        ModelFileError: The file is no plan of this model.
    """
    if options.precision not in (None, "auto"):
        raise UsageError(
            f"precision {options.precision!r} with tensorrt; a plan computes in the precision it "
            "was built in: open the bundle's plan of that precision"
        )
    device = cuda_device(options.device)
    entry = options.entry
    name = _library_name(options)
    mismatch = _gpu_mismatch(entry, device)
    if mismatch is not None:
        if not options.rebuild:
            advice = rebuild_advice(options.bundle, entry)
            raise DeviceError(f"the plan {path} {mismatch}; {advice}")
        entry = _rebuild(path, options, device)
    library = load_tensorrt(name)
    mismatch = _version_mismatch(entry, library)
    if mismatch is not None:
        if not options.rebuild:
            advice = rebuild_advice(options.bundle, entry)
            raise BackendError(f"the plan {path} {mismatch}; {advice}")
        entry = _rebuild(path, options, device)
    gpu = open_gpu(device)
    try:
        return _start(path, options, entry, library, gpu, graphs=graphs)
    except ModelFileError as err:
        if entry is not options.entry or not options.rebuild or not _can_rebuild(options):
            raise ModelFileError(f"{err}; {rebuild_advice(options.bundle, entry)}") from err
    entry = _rebuild(path, options, device)
    return _start(path, options, entry, library, gpu, graphs=graphs)


def _start(
    path: Path,
    options: SessionOptions,
    entry: BundleFile | None,
    library: TensorRTLibrary,
    gpu: Gpu,
    *,
    graphs: bool,
) -> TensorRTSession:
    built_for = entry.built_for if entry else None
    host_code = built_for is not None and built_for.version_compatible
    with gpu.active():
        engine = PlanEngine.load(
            library,
            path,
            options.spec,
            sha256=entry.sha256 if entry else None,
            host_code=host_code,
        )
        cache_path = None
        if library.ahead_of_time and options.cache:
            digest = entry.sha256 if entry else sha256_file(path)
            cache_path = runtime_cache_path(digest)
        engine.use_runtime_config(graphs=graphs, cache_path=cache_path)
        contexts = _contexts_within(options.memory_limit, engine, path)
    return TensorRTSession(
        gpu, engine, graphs=graphs, contexts=contexts, precision=entry.precision if entry else None
    )


def _contexts_within(limit: int | None, engine: PlanEngine, path: Path) -> int:
    if limit is None:
        return MAX_CONTEXTS
    weights, each = path.stat().st_size, max(engine.context_bytes, 1)
    contexts = (limit - weights) // each
    if contexts < 1:
        raise UsageError(
            f"memory_limit is {limit} bytes; {path.name} needs about {weights + each}: raise it, "
            "or build the engine with a smaller --max-batch"
        )
    return min(int(contexts), MAX_CONTEXTS)


def _library_name(options: SessionOptions) -> LibraryName:
    built_for = options.entry.built_for if options.entry else None
    asked: LibraryName | None = None
    if options.backend is not None:
        asked = "tensorrt_rtx" if options.backend == "tensorrt-rtx" else "tensorrt"
    if asked is None:
        return built_for.library if built_for else "tensorrt"
    if built_for is not None and built_for.library != asked:
        raise UsageError(
            f"backend is {options.backend!r}; this plan was built with {title(built_for.library)} "
            f"{built_for.version} and runs with that only"
        )
    return asked


def _gpu_mismatch(entry: BundleFile | None, device: CudaDevice) -> str | None:
    built_for = entry.built_for if entry else None
    return None if built_for is None else gpu_mismatch(built_for, device)


def _version_mismatch(entry: BundleFile | None, library: TensorRTLibrary) -> str | None:
    built_for = entry.built_for if entry else None
    return None if built_for is None else version_mismatch(built_for, library.version)


def _can_rebuild(options: SessionOptions) -> bool:
    return options.bundle is not None and options.entry is not None


def _rebuild(path: Path, options: SessionOptions, device: CudaDevice) -> BundleFile:
    if options.bundle is None:
        raise ModelFileError(f"{path} is in no bundle, so its ONNX is not known; export it again")
    bundle = rebuild_engine(options.bundle, path.name, device=f"cuda:{device.index}")
    return bundle.files[path.name]
