"""OpenVINO: the ONNX file on the CPU, compiled for two fixed batch sizes.

A compiled graph of a fixed batch size is faster than a dynamic one. Two sizes are compiled: one
image and the usual batch. Any other batch is cut into those two. This costs less than a third copy
of the weights, and an image's outputs do not depend on the size of its batch.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.backends.base import SessionOptions
from hybrid_rt.backends.openvino_cache import CompiledCache
from hybrid_rt.bundle.interface import check_interface
from hybrid_rt.bundle.manifest import read_model_file
from hybrid_rt.bundle.validated import combination
from hybrid_rt.cpu import prepare, why_unusable
from hybrid_rt.cuda import parse_device
from hybrid_rt.errors import BackendError, DeviceError, HybridError, ModelFileError
from hybrid_rt.files import sha256_file


class OpenVinoSession:
    """One model compiled for a few batch sizes, each with a pool of infer requests."""

    backend = "openvino"
    device = "cpu"

    def __init__(
        self, core: Any, path: Path, options: SessionOptions, config: dict[str, Any]
    ) -> None:
        self._core: Any = core
        self._path = path
        self._spec = options.spec
        self._config = config
        self._digest = None if options.entry is None else options.entry.sha256
        self._cache: CompiledCache | None = None
        if options.cache:
            self._digest = self._digest or sha256_file(path)
            self._cache = CompiledCache.of(
                path, digest=self._digest, spec=options.spec, config=config, core=core
            )
        self._model: Any = None  # the graph, read before the first compilation
        self._sizes = sorted({1, options.batch_size}, reverse=True)
        self._compiled: dict[int, _Compiled] = {}
        self._lock = threading.Lock()
        first = self._compile(1)
        self.output_names = first.output_names
        self.detail = first.describe()
        #: The number of simultaneous calls of ``run`` that raises the throughput.
        self.parallel = first.parallel

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> OpenVinoSession:
        """Open ``path``. Raises ModelFileError, BackendError or DeviceError."""
        kind, _ = parse_device(options.device)
        if kind == "cuda":
            raise DeviceError(
                f"device {options.device!r} with openvino; it runs on the CPU here: use "
                "backend='onnxruntime' or device='cpu'"
            )
        cap = prepare("openvino")
        import openvino

        core = openvino.Core()
        bf16 = _use_bf16(core, options)
        _check_instructions(path, options, bf16, cap)
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": options.mode.upper(),
        }
        if options.threads is not None:
            config["INFERENCE_NUM_THREADS"] = options.threads
        return cls(core, path, options, config)

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """See Session.run."""
        if self._core is None:
            raise BackendError("this session is closed; open the model again")
        try:
            if len(images) in self._sizes:
                values = self._of_size(len(images)).infer(images)
            else:
                chunks = [self._of_size(len(chunk)).infer(chunk) for chunk in self._cut(images)]
                values = [np.concatenate(column) for column in zip(*chunks, strict=True)]
        except HybridError:
            raise
        except Exception as err:
            raise _translate(err, self._path, "run") from err
        return dict(zip(self.output_names, values, strict=True))

    def close(self) -> None:
        """See Session.close."""
        with self._lock:
            self._model = self._core = None
            self._compiled = {}
            self._cache = None  # last: it holds memory of the compiled models

    def _cut(self, images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        chunks, start = [], 0
        for size in self._sizes:  # largest first, 1 last
            while len(images) - start >= size:
                chunks.append(images[start : start + size])
                start += size
        return chunks

    def _of_size(self, size: int) -> _Compiled:
        compiled = self._compiled.get(size)
        return compiled if compiled is not None else self._compile(size)

    def _compile(self, size: int) -> _Compiled:
        with self._lock:  # one thread compiles, the others wait for it
            if size in self._compiled:
                return self._compiled[size]
            if self._core is None:
                raise BackendError("this session is closed; open the model again")
            found = (
                None if self._cache is None else self._cache.load(self._core, size, self._config)
            )
            if found is None:
                found = self._compile_graph(size)
                if self._cache is not None:
                    self._cache.store(found, size)
            self._compiled[size] = compiled = _Compiled(found)
            return compiled

    def _compile_graph(self, size: int) -> Any:
        if self._model is None:
            self._model = self._read()
        try:
            model = self._model.clone()
            shape = model.input("images").get_partial_shape()
            shape[0] = size
            model.reshape(shape)
            return self._core.compile_model(model, "CPU", self._config)
        except Exception as err:
            raise _translate(err, self._path, "compile") from err

    def _read(self) -> Any:
        try:
            if self._digest is None:  # a lone file
                model = self._core.read_model(str(self._path))
            else:  # perhaps long after the file was opened, for another batch size
                model = self._core.read_model(read_model_file(self._path, self._digest), b"")
            check_interface(
                self._path,
                self._spec,
                {i.get_any_name(): (_type_name(i), _sizes(i)) for i in model.inputs},
                {o.get_any_name(): _sizes(o) for o in model.outputs},
            )
        except HybridError:
            raise
        except Exception as err:
            raise _translate(err, self._path, "open") from err
        return model


class _Compiled:
    """A compiled graph and its idle infer requests, one of which each caller borrows."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.output_names = tuple(o.get_any_name() for o in model.outputs)
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.parallel = int(model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def infer(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._model.create_infer_request()
        # The copy takes microseconds; the caller's array is not kept and may be read-only.
        request.get_input_tensor().data[...] = images
        request.infer()
        values = [request.get_output_tensor(i).data.copy() for i in range(len(self.output_names))]
        self._idle.put(request)
        return values

    def describe(self) -> str:
        precision = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        streams = self._model.get_property("NUM_STREAMS")
        return f"CPU {precision}, {streams} stream{'s' if int(streams) > 1 else ''}"


def _use_bf16(core: Any, options: SessionOptions) -> bool:
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if options.precision == "bf16" and not has_bf16:
        raise DeviceError(
            "precision 'bf16' was asked for, but this CPU has no bf16 instructions (AVX512-BF16 "
            "or AMX); use precision='fp32'"
        )
    if options.precision in ("fp32", "bf16"):
        return options.precision == "bf16"
    return has_bf16 and options.entry is not None and options.entry.precision == "bf16"


def _check_instructions(path: Path, options: SessionOptions, bf16: bool, cap: str | None) -> None:
    """Raise DeviceError for a file that would end this process or compute wrong numbers here."""
    file = options.entry.precision if options.entry else "fp32"
    _, precision = combination("openvino", file, "bf16" if bf16 else "fp32")
    reason = why_unusable("openvino", precision)
    if reason is None and options.entry is None and cap is not None:
        reason = why_unusable("openvino", "int8")  # a lone file may hold INT8 layers
    if reason is not None:
        raise DeviceError(
            f"{path.name}: {reason}; or use backend='onnxruntime', or the bundle's model.onnx with "
            "precision='fp32'"
        )


def _sizes(port: Any) -> list[int | None]:
    return [None if d.is_dynamic else d.get_length() for d in port.get_partial_shape()]


def _type_name(port: Any) -> str:
    name: str = port.get_element_type().get_type_name()
    return {"u8": "uint8"}.get(name, name)


def _translate(err: Exception, path: Path, action: str) -> HybridError:
    """Map openvino's exceptions to ours; the only place that does."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    text = (lines[-1] if lines else type(err).__name__)[:300]
    if action == "open":
        return ModelFileError(f"{path} cannot be read by openvino ({text}); export it again")
    return BackendError(f"openvino cannot {action} {path.name} ({text})")
