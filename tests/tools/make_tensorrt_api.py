"""Record a TensorRT's classes, members, parameters and enumerations in tensorrt_api.json.

    python tests/tools/make_tensorrt_api.py tensorrt            # whatever is installed
    python tests/tools/make_tensorrt_api.py tensorrt_bindings 8.6
    python tests/tools/make_tensorrt_api.py pycuda.driver

Run it once for each version; the file is extended. The bindings' wheels on PyPI import without
TensorRT itself where empty libraries stand in for libnvinfer and the parser's: nothing is called.
"""

import importlib
import json
import re
import sys
from pathlib import Path

CLASSES = [
    "Builder",
    "IBuilderConfig",
    "INetworkDefinition",
    "OnnxParser",
    "ParserError",
    "ILayer",
    "ICastLayer",
    "IConstantLayer",
    "IConvolutionLayer",
    "IDeconvolutionLayer",
    "IOptimizationProfile",
    "ITensor",
    "ITimingCache",
    "IHostMemory",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "IRuntimeConfig",
    "IRuntimeCache",
    "ILogger",
    "IProgressMonitor",
    "Weights",
    "Dims",
    "EngineInspector",
]
ENUMERATIONS = [
    "NetworkDefinitionCreationFlag",
    "BuilderFlag",
    "MemoryPoolType",
    "ComputeCapability",
    "HardwareCompatibilityLevel",
    "DataType",
    "LayerType",
    "ProfilingVerbosity",
    "TensorIOMode",
    "PreviewFeature",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineValidity",
    "EngineInvalidityDiagnostics",
    "LayerInformationFormat",
]
PYCUDA_CLASSES = [
    "Device",
    "Context",
    "Stream",
    "DeviceAllocation",
    "PagelockedHostAllocation",
]
PYCUDA_FUNCTIONS = [
    "init",
    "mem_alloc",
    "pagelocked_empty",
    "memcpy_htod_async",
    "memcpy_dtoh_async",
]


def parameters(name, text):
    """Return lists of (name, optional), one per overload, from a pybind11 or Boost docstring."""
    found = []
    for line in (text or "").splitlines():
        line = re.sub(r"^\d+\. ", "", line.strip())
        if not line.startswith(f"{name}(") or "*args" in line:
            continue
        inside = line[len(name) + 1 : line.rindex(") ->")]
        boost = re.findall(r"(\[?),? ?\(\w+\)(\w+)(=?)", inside)  # (type)name, [, (type)name=value]
        if boost:
            found.append([[p, bool(bracket or equals)] for bracket, p, equals in boost])
        else:
            while (plain := re.sub(r"<[^<>]*>|\[[^][]*\]|\([^()]*\)", "0", inside)) != inside:
                inside = plain
            names = [p for p in (q.strip() for q in inside.split(",")) if p]
            found.append([[p.partition(":")[0].strip(), "=" in p] for p in names])
    return found


def describe(cls):
    members = {}
    for name in dir(cls):
        if name.startswith("_") and name not in ("__init__", "__getitem__", "__len__"):
            continue
        value = getattr(cls, name)
        if isinstance(value, property):
            members[name] = {"property": "settable" if value.fset else "read-only"}
        elif callable(value):
            members[name] = {"overloads": parameters(name, value.__doc__)}
    return members


def main():
    module_name, *version = sys.argv[1:]
    if module_name == "tensorrt_rtx_bindings":
        from hybrid_rt.tensorrt.library import load_tensorrt

        module = load_tensorrt("tensorrt_rtx").module
    else:
        module = importlib.import_module(module_name)
    path = Path(__file__).parents[1] / "assets/tensorrt_api.json"
    data = json.loads(path.read_text()) if path.exists() else {}
    if module_name.startswith("pycuda"):
        import pycuda

        entry = {
            "version": pycuda.VERSION_TEXT,
            "classes": {name: describe(getattr(module, name)) for name in PYCUDA_CLASSES},
            "functions": {
                name: parameters(name, getattr(module, name).__doc__) for name in PYCUDA_FUNCTIONS
            },
        }
        key = "pycuda"
    else:
        entry = {
            "version": module.__version__,
            "classes": {n: describe(getattr(module, n)) for n in CLASSES if hasattr(module, n)},
            "enumerations": {
                n: {k: int(v) for k, v in getattr(module, n).__members__.items()}
                for n in ENUMERATIONS
                if hasattr(module, n)
            },
        }
        key = version[0] if version else ".".join(module.__version__.split(".")[:2])
    data[key] = entry
    path.write_text(json.dumps(data, separators=(",", ":"), sort_keys=True) + "\n")
    print(f"{path}: {key} is {entry['version']}")


if __name__ == "__main__":
    main()
