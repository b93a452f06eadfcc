"""TensorRT and TensorRT for RTX behind one interface: find, load and query a library.

Four generations are in use: TensorRT 8.6 (JetPack 6.0), 10.x, 11.x and TensorRT for RTX 1.x. They
share their classes. Only this module queries what differs between them::

    library = load_tensorrt("auto")
    library.name, library.version, library.strongly_typed
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hybrid_rt.cuda import CudaDevice
from hybrid_rt.errors import BackendMissingError, UsageError

LibraryName = Literal["tensorrt", "tensorrt_rtx"]

#: Modules with each library's Python classes, in order of preference. NVIDIA's packages have the
#: library's name; the wheels with bindings alone end in ``_bindings``.
_MODULES: dict[LibraryName, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}

#: A package that carries TensorRT-RTX's shared libraries and no Python API.
_RTX_LIBRARY_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"

_HOW_TO_GET: dict[LibraryName, str] = {
    "tensorrt": (
        "pip install 'tensorrt-cu13<12', or 'tensorrt-cu12<12' for a driver older than 580 (the "
        "libraries come from NVIDIA's index), or use JetPack's own python3-libnvinfer on a Jetson"
    ),
    "tensorrt_rtx": (
        "pip install --no-deps tensorrt-rtx-cu13-bindings==1.7.1.116 "
        "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0 (x86-64 Linux, Python 3.11 or newer), or "
        "pip install tensorrt-rtx"
    ),
}


_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class TensorRTLibrary:
    """A loaded TensorRT: its module and the differences between generations."""

    name: LibraryName
    module: Any

    @property
    def version(self) -> str:
        """Return the version, such as "10.3.0"."""
        return str(self.module.__version__)

    @property
    def label(self) -> str:
        """Return the name for messages, such as "TensorRT 10.3.0"."""
        return f"{title(self.name)} {self.version}"

    @property
    def network_flags(self) -> int:
        """Return the flags for ``create_network``.

        TensorRT 11 and TensorRT for RTX have strongly typed networks only; TensorRT 10 needs the
        flag. TensorRT 8.6 has none and needs the flag for an explicit batch dimension instead.
        """
        flags = self.module.NetworkDefinitionCreationFlag
        if not self._has_precision_flags:
            return 0
        wanted = "STRONGLY_TYPED" if hasattr(flags, "STRONGLY_TYPED") else "EXPLICIT_BATCH"
        return 1 << int(getattr(flags, wanted))

    @property
    def strongly_typed(self) -> bool:
        """Return whether the engine has the types of the ONNX graph without constraints."""
        return not self._has_precision_flags or hasattr(
            self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"
        )

    @property
    def ahead_of_time(self) -> bool:
        """Return whether an engine can be built for GPUs that are not in this machine."""
        return hasattr(self.module, "ComputeCapability")

    @property
    def known_capabilities(self) -> dict[str, Any]:
        """Return the module's values by compute capability, such as "8.9".

        Empty if the library builds only for the GPU in the machine.
        """
        if not self.ahead_of_time:
            return {}
        members = self.module.ComputeCapability.__members__
        numbers = sorted((int(name[2:-1]), int(name[-1])) for name in members if name[:2] == "SM")
        return {f"{major}.{minor}": members[f"SM{major}{minor}"] for major, minor in numbers}

    def why_not_for(self, device: CudaDevice) -> str | None:
        """Return why no engine can be built for a GPU of this machine, on one line, or None."""
        known = self.known_capabilities
        if not known or device.compute_capability in known:
            return None
        return (
            f"{self.label} cannot build for {device}; expected one of {', '.join(known)}: use "
            f"TensorRT on this GPU, {how_to_get('tensorrt')}"
        )

    @property
    def has_timing_cache(self) -> bool:
        """Return whether a build uses a timing cache; TensorRT for RTX times nothing."""
        return not self.ahead_of_time

    @property
    def has_progress(self) -> bool:
        """Return whether a build reports its progress (TensorRT 10 and newer)."""
        return hasattr(self.module, "IProgressMonitor")

    @property
    def _has_precision_flags(self) -> bool:
        return hasattr(self.module.BuilderFlag, "FP16")


def title(name: str) -> str:
    """Return the library's name for messages, such as "TensorRT-RTX"."""
    return {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}.get(name, name)


def installed_libraries() -> tuple[LibraryName, ...]:
    """Return the libraries whose Python module is installed, without importing it."""
    return tuple(name for name in _MODULES if _find_module(name) is not None)


def how_to_get(name: LibraryName) -> str:
    """Return how to install that library, in a few words."""
    return _HOW_TO_GET[name]


def load_tensorrt(name: LibraryName | Literal["auto"] = "auto") -> TensorRTLibrary:
    """Import TensorRT; "auto" prefers ``tensorrt`` over ``tensorrt_rtx``.

    Uses no GPU.

    Raises:
        BackendMissingError: It is not installed, or its shared libraries do not load.
        UsageError: The name is unknown.
    """
    if name == "auto":
        found = installed_libraries()
        if not found:
            raise BackendMissingError(
                "neither tensorrt nor tensorrt_rtx is installed; " + how_to_get("tensorrt")
            )
        name = found[0]
    if name not in _MODULES:
        raise UsageError(f"library is {name!r}; expected auto, {', '.join(_MODULES)}")
    module_name = _find_module(name)
    if module_name is None:
        raise BackendMissingError(f"{title(name)} is not installed; {how_to_get(name)}")
    if module_name == "tensorrt_rtx_bindings":
        _preload_rtx()
    try:
        module = importlib.import_module(module_name)
    except (ImportError, OSError, RuntimeError) as err:
        raise BackendMissingError(
            f"the module {module_name} is installed but does not load: {err}; its shared "
            f"libraries are missing or for another CUDA: {how_to_get(name)}"
        ) from err
    if not hasattr(module, "Builder") and not hasattr(module, "Runtime"):
        raise BackendMissingError(
            f"the module {module_name} at {getattr(module, '__file__', '?')} has neither Builder "
            f"nor Runtime; it is not {title(name)}: {how_to_get(name)}"
        )
    return TensorRTLibrary(name, module)


def compute_capability_text(value: str) -> str:
    """Return "8.9" for "8.9", "SM89", "sm_89" or "89". Raises UsageError for anything else."""
    text = value.strip().lower().removeprefix("sm").removeprefix("_")
    match = re.fullmatch(r"(\d{1,2})\.(\d)|(\d{1,2})(\d)", text)
    if match is None:
        raise UsageError(f"compute capability {value!r}; expected a form such as SM89 or 8.9")
    major, minor = (match[1], match[2]) if match[1] else (match[3], match[4])
    return f"{int(major)}.{minor}"


def _find_module(name: LibraryName) -> str | None:
    for module in _MODULES[name]:
        try:
            if importlib.util.find_spec(module) is not None:
                return module
        except ValueError:  # an imported module without a spec can be used all the same
            return module
    return None


def _preload_rtx() -> None:
    """Load TensorRT-RTX's shared libraries, which the bindings do not find by themselves.

    If they are not in that package, the dynamic loader looks in its own search path.
    """
    found = importlib.util.find_spec(_RTX_LIBRARY_PACKAGE)
    if found is None or not found.submodule_search_locations:
        return
    folder = Path(next(iter(found.submodule_search_locations)))
    for stem in ("libcudart", "libtensorrt_rtx", "libtensorrt_onnxparser_rtx"):
        files = sorted(
            (f for f in folder.glob(f"{stem}.so.*") if not f.is_symlink()), key=_so_version
        )
        if not files or _is_loaded(_soname(files[-1])):
            continue  # PyTorch may have brought its own libcudart of the same major version
        try:
            ctypes.CDLL(str(files[-1]), mode=ctypes.RTLD_GLOBAL)
        except OSError as err:
            raise BackendMissingError(
                f"{files[-1]} does not load: {err}; {how_to_get('tensorrt_rtx')}"
            ) from err


def _so_version(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path.name.partition(".so.")[2]))


def _soname(path: Path) -> str:
    stem, _, version = path.name.partition(".so.")
    return f"{stem}.so.{version.split('.')[0]}"


def _is_loaded(soname: str) -> bool:
    """Return whether this process has loaded that library."""
    try:
        ctypes.CDLL(soname, mode=ctypes.RTLD_GLOBAL | os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def dtype_name(dtype: Any) -> str:
    """Return the ONNX and NumPy name of a TensorRT DataType, such as "float16" for HALF."""
    text = getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]
    return _NAMES.get(text, text.lower())
