"""NVIDIA GPUs: the driver, the ``device`` argument, memory and streams, graphs.

    gpu = open_gpu(cuda_device("cuda:0"))
    with gpu.active():
        stream, memory = gpu.stream(), gpu.allocate(1 << 20)

Nothing here is imported from a CUDA library before ``open_gpu``.
"""

from hybrid_rt.cuda.device import cuda_device, parse_device
from hybrid_rt.cuda.driver import CudaDevice, cuda_device_count, cuda_devices, driver_problem
from hybrid_rt.cuda.graph import CudaGraph
from hybrid_rt.cuda.memory import DeviceMemory, Gpu, Stream, abandon, open_gpu
from hybrid_rt.cuda.providers import load_bindings, provider_problem

__all__ = [
    "CudaDevice",
    "CudaGraph",
    "DeviceMemory",
    "Gpu",
    "Stream",
    "abandon",
    "cuda_device",
    "cuda_device_count",
    "cuda_devices",
    "driver_problem",
    "load_bindings",
    "open_gpu",
    "parse_device",
    "provider_problem",
]
