"""An opened model: an image to pixels, pixels to outputs, and what runs where.

HybridEngine builds on it; servers and batch jobs use its two steps, ``load`` and ``run``, apart.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from hybrid_rt.about import engine_info
from hybrid_rt.backends.base import Outputs, Pixels, Session, SessionOptions
from hybrid_rt.backends.gpu_support import warn_once, why_gpu_unused
from hybrid_rt.backends.registry import open_session
from hybrid_rt.bundle.manifest import Bundle
from hybrid_rt.errors import BackendError, ImageError, ModelFileError, UsageError
from hybrid_rt.images.load import load_pixels, source_name
from hybrid_rt.selection import ModelFile, find_model
from hybrid_rt.spec import ModelSpec
from hybrid_rt.uncertainty.ood import OodDetector, why_missing

_Opened = TypeVar("_Opened", bound="OpenModel")


class OpenModel:
    """A model file opened with the library that fits it. See HybridEngine for the arguments."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        backend: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        batch_size: int = 8,
        mode: Literal["latency", "throughput"] = "latency",
        cache: bool = False,
        memory_limit: int | None = None,
        rebuild: bool = False,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise UsageError(
                f"path is {type(path).__name__}; expected the path of a model file or bundle"
            )
        asked: dict[str, Any] = {
            "device": device,
            "backend": backend,
            "precision": precision,
            "threads": threads,
            "batch_size": batch_size,
            "mode": mode,
            "cache": cache,
            "memory_limit": memory_limit,
            "rebuild": rebuild,
        }
        model = find_model(Path(path), device=device, backend=backend, precision=precision)
        options = SessionOptions(spec=model.spec, bundle=model.bundle, entry=model.entry, **asked)
        if precision in (None, "auto"):
            options = dataclasses.replace(options, precision=model.precision)
        if backend is None:
            options = dataclasses.replace(options, backend=model.backend)
        session = open_session(model.path, spec=model.spec, options=options)
        if rebuild and model.bundle is not None:  # its plan may be another one now
            bundle = Bundle.load(model.path.parent)
            entry = bundle.files[model.path.name]
            model = dataclasses.replace(model, bundle=bundle, entry=entry)
        model = dataclasses.replace(model, backend=session.backend, precision=options.precision)
        model = _with_unused_gpu(model, session, device, backend)
        self._reopen: tuple[str, dict[str, Any]] | None = (os.fspath(path), asked)
        self._set_up(session, model.spec, model, batch_size)

    @classmethod
    def from_session(
        cls: type[_Opened],
        session: Session,
        spec: ModelSpec,
        *,
        bundle: Bundle | None = None,
        batch_size: int = 8,
    ) -> _Opened:
        """An engine on a session of your own, such as backends.fake.FakeSession for tests."""
        engine = cls.__new__(cls)
        engine._reopen = None
        model = None
        if bundle is not None:
            model = ModelFile(
                path=(bundle.folder or Path()) / "session",
                spec=spec,
                reason="opened by the caller",
                bundle=bundle,
            )
        engine._set_up(session, spec, model, batch_size)
        return engine

    def _set_up(
        self, session: Session, spec: ModelSpec, model: ModelFile | None, batch_size: int
    ) -> None:
        self.spec = spec
        self._session = session
        self._model = model
        self._batch_size = batch_size
        self._process = os.getpid()
        self._closed = False
        size = spec.preprocess
        self._pixels_shape = (size.height, size.width, 3)
        # Pixels of this shape need no further step, unless a crop looks at their content.
        self._identity = size.crop == "none"
        self._folder = None if model is None else model.path.parent
        self._ood = None if self._folder is None else OodDetector.load(self._folder, spec)

    def load(self, source: Any, *, float_range: tuple[float, float] | None = None) -> Pixels:
        """One image as the model's input, uint8 ``[H,W,3]``. Raises ImageError."""
        if float_range is None and self._is_pixels(source, 3):
            pixels: Pixels = source
            return pixels
        return load_pixels(source, self.spec.preprocess, float_range=float_range)

    def run(self, images: Pixels) -> Outputs:
        """The graph's outputs by name for pixels from ``load``, uint8 ``[N,H,W,3]``.

        The arrays are the caller's to keep.
        """
        if self._closed:
            raise BackendError("this engine is closed; open the model again")
        if os.getpid() != self._process:
            raise BackendError(
                "this engine was opened before fork() in another process, and its threads were "
                "not copied; open one in each process, or start processes with 'spawn'"
            )
        if (
            not isinstance(images, np.ndarray)
            or images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[1:] != self._pixels_shape
            or not len(images)
        ):
            height, width, _ = self._pixels_shape
            raise ImageError(
                f"{source_name(images)} as the model's input; expected uint8 "
                f"[N,{height},{width},3] with N at least 1: use predict, which resizes"
            )
        if not images.flags.c_contiguous:
            images = np.ascontiguousarray(images)
        return self._session.run(images)

    @property
    def detects_ood(self) -> bool:
        """Whether predictions have an ``ood_score``: the model has a detector."""
        return self._ood is not None

    def check_ood(self) -> None:
        """Raise ModelFileError, with what to do, if predictions have no ``ood_score``."""
        if self._ood is None:
            raise ModelFileError(why_missing(self.spec.extras, self._folder))

    def _judged(self, images: Pixels) -> Outputs:
        """What ``run`` returns, and each image's ``ood_score`` ``[N]`` if the model has a
        detector.
        """
        outputs = self.run(images)
        if self._ood is not None:
            outputs["ood_score"] = self._ood.score(outputs["features"])
        return outputs

    @property
    def batch_size(self) -> int:
        """Images a batch where a method is not told otherwise."""
        return self._batch_size

    @property
    def info(self) -> Mapping[str, Any]:
        """What runs where and why, as JSON values."""
        return engine_info(self._session, self.spec, self._model)

    def __repr__(self) -> str:
        session = self._session
        state = "closed, " if self._closed else ""
        height, width, _ = self._pixels_shape
        return (
            f"{type(self).__name__}({self._describe_file()!r}, {state}{session.backend} on "
            f"{session.device} ({session.detail}), {height}x{width}, "
            f"{len(self.spec.classes)} classes)"
        )

    def close(self) -> None:
        """Free what the library holds. May be called twice."""
        self._closed = True
        self._session.close()

    def __enter__(self: _Opened) -> _Opened:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is None:
            raise UsageError("an engine made with from_session cannot be pickled; open a file")
        path, asked = self._reopen
        return functools.partial(type(self), **asked), (path,)

    def _describe_file(self) -> str:
        return "session" if self._model is None else str(self._model.path)

    def _is_pixels(self, source: Any, dimensions: int) -> bool:
        """Whether pixels are the model's input already, with no step left to take."""
        return (
            self._identity
            and isinstance(source, np.ndarray)
            and source.dtype == np.uint8
            and source.ndim == dimensions
            and bool(source.shape[-3:] == self._pixels_shape)
        )


def _with_unused_gpu(
    model: ModelFile, session: Session, device: str, backend: str | None
) -> ModelFile:
    """The model with what kept it from the GPU in its reason, said once in the log as well."""
    if device != "auto" or session.device != "cpu" or backend not in (None, "onnxruntime"):
        return model
    files = model.bundle.files.values() if model.bundle is not None else ()
    missing = why_gpu_unused(plans=any(file.format == "plan" for file in files))
    if missing is None:
        return model
    warn_once(missing)
    return dataclasses.replace(model, reason=f"{model.reason}; {missing}")
