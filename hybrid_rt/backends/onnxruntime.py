"""ONNX Runtime: any ONNX file on the CPU, on CUDA or through its TensorRT provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.backends.base import SessionOptions
from hybrid_rt.backends.gpu_support import (
    cuda_libraries_problem,
    load_cuda_libraries,
    onnxruntime_has_gpu,
)
from hybrid_rt.bundle.interface import check_interface
from hybrid_rt.bundle.manifest import read_model_file
from hybrid_rt.cuda import parse_device
from hybrid_rt.errors import BackendError, DeviceError, HybridError, ModelFileError, UsageError

_TYPES = {"tensor(uint8)": "uint8"}


class OnnxRuntimeSession:
    """One ``InferenceSession``, whose ``run`` is safe to call from many threads at once."""

    backend = "onnxruntime"

    def __init__(self, session: Any, path: Path, options: SessionOptions, device: str) -> None:
        self._session: Any = session
        self._path = path
        self.device = device
        self.detail = session.get_providers()[0]
        self.output_names = check_interface(
            path,
            options.spec,
            {i.name: (_TYPES.get(i.type, i.type), _sizes(i.shape)) for i in session.get_inputs()},
            {o.name: _sizes(o.shape) for o in session.get_outputs()},
        )

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> OnnxRuntimeSession:
        """Open ``path``. Raises ModelFileError, BackendError or DeviceError."""
        import onnxruntime

        if options.precision not in (None, "auto"):
            raise UsageError(
                f"precision {options.precision!r} with onnxruntime; it computes in the precision "
                "written in the file: open the bundle's file of that precision"
            )
        providers, device = _providers(options, onnxruntime.get_available_providers())
        if device != "cpu":
            load_cuda_libraries()
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors only
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        if options.mode == "throughput":
            # Calls run side by side: idle workers must not spin on the cores of the others.
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            # The bytes that were checked are the ones that run; a lone file has no digest.
            digest = None if options.entry is None else options.entry.sha256
            model = str(path) if digest is None else read_model_file(path, digest)
            session = onnxruntime.InferenceSession(model, settings, providers=providers)
            opened = cls(session, path, options, device)
        except HybridError:
            raise
        except Exception as err:  # also names that are not UTF-8
            raise _translate(err, path, "open") from err
        wanted = [name if isinstance(name, str) else name[0] for name in providers]
        got = session.get_providers()
        if got[: len(wanted)] != wanted:
            raise DeviceError(
                f"onnxruntime runs {path.name} on {got[0]}, but {wanted[0]} was asked for: "
                f"{cuda_libraries_problem()}, or use device='cpu'"
            )
        return opened

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """See Session.run."""
        session = self._session
        if session is None:
            raise BackendError("this session is closed; open the model again")
        try:
            if self.device == "cpu":
                values = session.run(None, {"images": images})
            else:
                values = self._run_bound(session, images)
        except Exception as err:
            raise _translate(err, self._path, "run") from err
        return dict(zip(self.output_names, values, strict=True))

    def close(self) -> None:
        """See Session.close."""
        self._session = None

    def _run_bound(self, session: Any, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Copy the images to the GPU and the outputs back, with no other copy between."""
        import onnxruntime

        index = int(self.device.partition(":")[2])
        binding = session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", index)
        binding.bind_ortvalue_input("images", value)
        for name in self.output_names:
            binding.bind_output(name, "cuda", index)
        session.run_with_iobinding(binding)
        outputs: list[NDArray[np.float32]] = binding.copy_outputs_to_cpu()
        return outputs


def _sizes(shape: list[Any]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]


def _providers(options: SessionOptions, available: list[str]) -> tuple[list[Any], str]:
    kind, index = parse_device(options.device)
    tensorrt = options.backend == "onnxruntime-tensorrt"
    if kind == "auto":
        kind = "cuda" if tensorrt or onnxruntime_has_gpu() else "cpu"
    if kind == "cpu":
        if tensorrt:
            raise UsageError("backend 'onnxruntime-tensorrt' with device 'cpu'; use 'cuda:0'")
        return ["CPUExecutionProvider"], "cpu"
    parse_device(f"cuda:{index}")  # the GPU is there
    wanted = ["TensorrtExecutionProvider"] * tensorrt + ["CUDAExecutionProvider"]
    for name in wanted:
        if name not in available:
            raise DeviceError(
                f"device 'cuda:{index}' needs {name}, and the installed onnxruntime has "
                f"{', '.join(available)}; run: pip uninstall onnxruntime && "
                "pip install 'hybrid-rt[gpu]', or use device='cpu'"
            )
    cuda_options: dict[str, Any] = {"device_id": index, "arena_extend_strategy": "kSameAsRequested"}
    if options.memory_limit is not None:
        cuda_options["gpu_mem_limit"] = options.memory_limit
    settings = {
        "TensorrtExecutionProvider": {"device_id": index},
        "CUDAExecutionProvider": cuda_options,
    }
    # get_providers() also lists the CPU, which runs what a GPU provider cannot.
    return [*((name, settings[name]) for name in wanted), "CPUExecutionProvider"], f"cuda:{index}"


def _translate(err: Exception, path: Path, action: str) -> HybridError:
    """Map onnxruntime's exceptions to ours; the only place that does."""
    text = " ".join(str(err).split())[:300]
    kind = type(err).__name__
    if action == "open" and kind not in ("NotImplemented", "EPFail", "EngineError"):
        return ModelFileError(
            f"{path} cannot be opened by onnxruntime ({kind}: {text}); export the model again"
        )
    return BackendError(f"onnxruntime cannot {action} {path.name} ({kind}: {text})")
