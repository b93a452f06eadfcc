"""Which libraries can use this machine's GPU, and what is missing for the others.

A library that is installed may still fail to load its CUDA libraries, and ONNX Runtime then runs on
the CPU without an error. So each is tried, once a process, before a file is chosen for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import sys
from pathlib import Path

from hybrid_rt.cuda import cuda_device_count, cuda_devices, driver_problem, provider_problem
from hybrid_rt.errors import BackendMissingError
from hybrid_rt.tensorrt.library import how_to_get, installed_libraries, load_tensorrt

_log = logging.getLogger("hybrid_rt")

#: Results of onnxruntime_gpu_problem and load_cuda_libraries in this process.
_tried: dict[str, str | None] = {}
_warned: set[str] = set()

_CUDA = "CUDAExecutionProvider"

#: An ONNX file with one Identity, opset 13. Made again in its test.
_IDENTITY = (
    b'\x08\x08:;\n\x10\n\x01a\x12\x01b"\x08Identity\x12\x05probeZ\x0f\n\x01a\x12\n\n\x08\x08\x01\x12'
    b"\x04\n\x02\x08\x01b\x0f\n\x01b\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


def onnxruntime_gpu_problem() -> str | None:
    """Return why ONNX Runtime cannot use the GPU here and what to do, or None if it can."""
    if "onnxruntime" not in _tried:
        _tried["onnxruntime"] = _try_onnxruntime()
    return _tried["onnxruntime"]


def _try_onnxruntime() -> str | None:
    if cuda_device_count() == 0:
        return driver_problem() or "the NVIDIA driver sees no GPU"
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime-gpu is not installed; run: pip install 'hybrid-rt[gpu]'"
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if _CUDA not in available:
        return (
            f"the installed onnxruntime has {', '.join(available)} only; run: pip uninstall "
            "onnxruntime && pip install 'hybrid-rt[gpu]'"
        )
    load_cuda_libraries()
    try:
        session = onnxruntime.InferenceSession(_IDENTITY, providers=[_CUDA])
        usable = _CUDA in session.get_providers()
    except Exception as err:  # onnxruntime's exceptions have no common base
        return f"onnxruntime-gpu cannot use the GPU: {' '.join(str(err).split())[:300]}"
    return None if usable else cuda_libraries_problem()


def load_cuda_libraries() -> None:
    """Load the CUDA and cuDNN libraries that pip installed, for ONNX Runtime 1.21 or newer."""
    import onnxruntime

    if "preload_dlls" in _tried:
        return
    _tried["preload_dlls"] = None
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
            onnxruntime.preload_dlls()


def cuda_libraries_problem() -> str:
    """Return which library ONNX Runtime's CUDA provider lacks and how to install it."""
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    reason = "its own message above names the cause"
    try:
        for name in ("shared", "cuda"):
            ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"))
    except OSError as err:
        reason = str(err)
    return (
        f"onnxruntime {onnxruntime.__version__} does not load its CUDA provider ({reason}); run: "
        "pip install 'hybrid-rt[gpu]', which brings CUDA and cuDNN ('hybrid-rt[gpu-cu12]' for a "
        "driver older than 580)"
    )


def tensorrt_support() -> tuple[dict[str, str], str | None]:
    """Return the version of each TensorRT that can run here, and why the others cannot.

    Call it on a machine with a GPU.
    """
    versions: dict[str, str] = {}
    problems = []
    for name in installed_libraries():
        try:
            versions[name] = load_tensorrt(name).version
        except BackendMissingError as err:
            problems.append(str(err))
    if not versions and not problems:
        problems.append(f"TensorRT is not installed; {how_to_get('tensorrt')}")
    memory = provider_problem() if versions else None
    if memory is not None:
        return {}, memory
    return versions, "; ".join(problems) or None


def why_gpu_unused(*, plans: bool) -> str | None:
    """Return what is missing to use this machine's GPU, or None without a GPU or a reason.

    Args:
        plans: Whether TensorRT has something to run too.
    """
    if cuda_device_count() == 0:
        return None
    problems = [onnxruntime_gpu_problem(), tensorrt_support()[1] if plans else None]
    found = [problem for problem in problems if problem is not None]
    return f"{cuda_devices()[0]} is not used: {'; '.join(found)}" if found else None


def warn_once(text: str) -> None:
    """Log a warning the first time that it comes up in this process."""
    if text not in _warned:
        _warned.add(text)
        _log.warning("%s", text)


def onnxruntime_has_gpu() -> bool:
    """Return whether a GPU is here and the installed onnxruntime runs on it."""
    return onnxruntime_gpu_problem() is None
