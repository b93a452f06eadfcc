"""The NVIDIA driver and its GPUs, read through ``libcuda`` alone.

TensorRT crashes the process, or returns None, if no driver is loaded, so this comes first. Nothing
is allocated and no CUDA context is made.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

from hybrid_rt.errors import DeviceError

# From cuda.h (CUresult, CUdevice_attribute); they belong to the driver's stable interface.
_SUCCESS = 0
_ERROR_NO_DEVICE = 100
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76

_LIBRARY = "libcuda.so.1"


@dataclass(frozen=True)
class CudaDevice:
    """One GPU as the driver names it. ``compute_capability`` has the form "8.9"."""

    index: int
    name: str
    compute_capability: str
    memory_bytes: int

    def __str__(self) -> str:
        return f"cuda:{self.index} ({self.name}, compute capability {self.compute_capability})"


def cuda_devices() -> tuple[CudaDevice, ...]:
    """Return the GPUs this process may use (CUDA_VISIBLE_DEVICES applies), at least one.

    Raises:
        DeviceError: Names what is missing, the driver or the device.
    """
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError as err:
        raise DeviceError(
            f"no NVIDIA driver here ({_LIBRARY} cannot be loaded: {err}); install the driver, or "
            "in a container pass the GPU in (docker run --gpus all)"
        ) from err
    _check(driver, driver.cuInit(0), "start the NVIDIA driver")
    count = ctypes.c_int()
    _check(driver, driver.cuDeviceGetCount(ctypes.byref(count)), "count the GPUs")
    if count.value < 1:
        _raise_no_device()
    return tuple(_device(driver, index) for index in range(count.value))


def cuda_device_count() -> int:
    """Return the number of NVIDIA GPUs this process can use; 0 without a driver."""
    try:
        return len(cuda_devices())
    except DeviceError:
        return 0


def driver_problem() -> str | None:
    """Return why no GPU can be used here, as one line, or None if one can."""
    try:
        cuda_devices()
    except DeviceError as err:
        return str(err)
    return None


def _device(driver: ctypes.CDLL, index: int) -> CudaDevice:
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    what = f"describe GPU {index}"
    _check(driver, driver.cuDeviceGet(ctypes.byref(handle), index), what)
    _check(driver, driver.cuDeviceGetName(name, len(name), handle), what)
    for value, attribute in (
        (major, _COMPUTE_CAPABILITY_MAJOR),
        (minor, _COMPUTE_CAPABILITY_MINOR),
    ):
        _check(driver, driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle), what)
    _check(driver, driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle), what)
    return CudaDevice(
        index=index,
        name=name.value.decode("utf-8", "replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=memory.value,
    )


def _check(driver: ctypes.CDLL, status: int, what: str) -> None:
    if status == _SUCCESS:
        return
    if status == _ERROR_NO_DEVICE:
        _raise_no_device()
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    reason = text.value.decode("utf-8", "replace") if text.value else "unknown error"
    raise DeviceError(
        f"cannot {what}: CUDA error {status}, {reason}; nvidia-smi shows the driver's state. In a "
        "child process made with fork, CUDA cannot be used after the parent used it: use spawn"
    )


def _raise_no_device() -> None:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    cause = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r})"
    raise DeviceError(
        f"the NVIDIA driver sees no GPU{cause}; check nvidia-smi, and in a container pass the GPU "
        "in (docker run --gpus all)"
    )
