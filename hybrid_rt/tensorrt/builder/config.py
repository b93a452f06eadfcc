"""The builder's configuration: a BuildRequest as TensorRT's settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hybrid_rt.errors import BackendError, ModelFileError, UsageError
from hybrid_rt.tensorrt.library import TensorRTLibrary


@dataclass(kw_only=True)
class BuildRequest:
    """A request to the worker. Without ``compute_capabilities`` the plan is for the first GPU."""

    onnx_path: str
    plan_path: str
    library: str
    compute_capabilities: list[str] = field(default_factory=list)
    max_batch: int = 8
    opt_batch: int = 8
    workspace_bytes: int | None = None
    timing_cache: str | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False


def configure(library: TensorRTLibrary, config: Any, request: BuildRequest) -> None:
    """Set the options of a request on TensorRT's IBuilderConfig.

    Raises:
        UsageError: The library cannot build for a compute capability of the request.
        BackendError: TensorRT refuses the compute capabilities together.
    """
    trt = library.module
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    # FP32 in the graph means FP32: TF32 keeps 10 bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    # One more stream, so that the ViT and the CNN can run at the same time.
    config.max_aux_streams = 1
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not library.strongly_typed and hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
        # By default TensorRT 8.6 allows one execution context per profile; 10 allows several.
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if library.ahead_of_time and not request.compute_capabilities:
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    if request.compute_capabilities:
        known = library.known_capabilities
        config.num_compute_capabilities = len(request.compute_capabilities)
        for index, capability in enumerate(request.compute_capabilities):
            if capability not in known:
                raise UsageError(
                    f"{library.label} cannot build for compute capability {capability}; expected "
                    f"one of {', '.join(known)}"
                )
            if not config.set_compute_capability(known[capability], index):
                raise BackendError(
                    f"{library.label} refuses the compute capabilities "
                    f"{', '.join(request.compute_capabilities)}; build one engine for each"
                )


def add_profile(builder: Any, network: Any, config: Any, request: BuildRequest) -> int:
    """Add one optimization profile from batch 1 to max, and return the largest batch.

    A graph of fixed batch gets no profile.

    Raises:
        ModelFileError: The graph has more inputs than the images, or other dynamic sizes.
        BackendError: TensorRT refuses the batch sizes.
    """
    if network.num_inputs != 1:
        raise ModelFileError(
            f"{request.onnx_path} has {network.num_inputs} inputs; expected one, images"
        )
    images = network.get_input(0)
    shape = tuple(int(size) for size in images.shape)
    if shape[0] != -1:
        return shape[0]  # the batch is fixed in the graph
    if -1 in shape[1:]:
        raise ModelFileError(
            f"{request.onnx_path} has an input of shape {shape}; expected only the batch dynamic"
        )
    profile = builder.create_optimization_profile()
    low, middle, high = ((size, *shape[1:]) for size in (1, request.opt_batch, request.max_batch))
    profile.set_shape(images.name, low, middle, high)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"TensorRT refuses the batch sizes 1, {middle[0]} and {high[0]}")
    return request.max_batch
