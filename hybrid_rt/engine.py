"""HybridEngine: pictures in, answers out.

engine = HybridEngine("model.onnx")
for p in engine.predict(["a.png", "scan.dcm"]):
    print(p.label, p.probability)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.backends import Session, SessionOptions, open_session
from hybrid_rt.bundle import Bundle
from hybrid_rt.choosing import ModelFile, find_model
from hybrid_rt.errors import BackendError, HybridError, ImageError, ModelFileError, UsageError
from hybrid_rt.images import decode, load_pixels, source_name
from hybrid_rt.pipeline import Outputs, Pixels, Result, default_decode_threads, run_pipeline
from hybrid_rt.results import Prediction, PredictionError, Predictions
from hybrid_rt.sources import is_named, is_one
from hybrid_rt.spec import ModelSpec

if TYPE_CHECKING:
    from PIL import Image

    from hybrid_rt.explain import Explanation
    from hybrid_rt.selftest import SelfTest


class HybridEngine:
    """A model, opened once, for any number of pictures and threads.

    ``path`` is an ONNX file, a TensorRT plan or a bundle's folder, of which the fastest certified
    file for this machine is taken (see hybrid_rt.choosing). ``device`` is "auto", "cpu" or
    "cuda:0"; ``backend`` one of hybrid_rt.backends.BACKENDS; ``precision`` "auto", "fp32" or
    "bf16" (OpenVINO only: the others compute as the file says). ``threads`` bounds the library's
    threads. ``mode`` "throughput" runs batches side by side where the backend can. ``cache``
    allows OpenVINO to keep compiled models on disk. ``rebuild`` allows a plan made for another
    GPU or TensorRT version to be built again from the bundle's ONNX.

    Raises ModelFileError, DigestError or SpecError for the file, BackendError (or its kinds
    BackendMissingError and DeviceError) for the machine, UsageError for the arguments.

    Methods may be called from many threads. After ``fork`` a child process opens its own engine;
    an engine can be pickled for ``spawn``: the other process opens the file again.
    """

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
        cache: bool = True,
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
        model = find_model(Path(path), device=device, backend=backend)
        options = SessionOptions(spec=model.spec, bundle=model.bundle, entry=model.entry, **asked)
        session = open_session(model.path, spec=model.spec, options=options)
        self._reopen: tuple[str, dict[str, Any]] | None = (os.fspath(path), asked)
        self._set_up(session, model.spec, model, batch_size)

    @classmethod
    def from_session(
        cls, session: Session, spec: ModelSpec, *, bundle: Bundle | None = None, batch_size: int = 8
    ) -> HybridEngine:
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

    # ---- answers -------------------------------------------------------------------------

    @overload
    def predict(
        self,
        imgs: str | os.PathLike[str] | bytes | Image.Image,
        *,
        batch_size: int | None = None,
        float_range: tuple[float, float] | None = None,
    ) -> Prediction: ...
    @overload
    def predict(
        self,
        imgs: list[Any] | tuple[Any, ...],
        *,
        batch_size: int | None = None,
        float_range: tuple[float, float] | None = None,
    ) -> Predictions: ...
    @overload
    def predict(
        self,
        imgs: Any,
        *,
        batch_size: int | None = None,
        float_range: tuple[float, float] | None = None,
    ) -> Any: ...
    def predict(
        self,
        imgs: Any,
        *,
        batch_size: int | None = None,
        float_range: tuple[float, float] | None = None,
    ) -> Prediction | Predictions:
        """The answer for one picture, or the answers for many.

        One picture (a path, bytes, a file object, a PIL image, an array ``[H,W]`` or ``[H,W,C]``)
        gives a Prediction. Many (a list, another iterable, an array ``[N,H,W,C]``) give
        Predictions in their order. ``float_range`` says what black and white are in float
        arrays, such as (0, 1). Raises ImageError that names the picture which cannot be read.
        """
        if is_one(imgs):
            outputs = self.run(self.load(imgs, float_range=float_range)[None])
            row = {name: values[0] for name, values in outputs.items()}
            return self._prediction(row, source_name(imgs), imgs, float_range)
        rows = self._rows(imgs, batch_size, float_range)
        return Predictions(
            [
                self._prediction(row, _name(source, i), source, float_range)
                for i, (source, row) in enumerate(rows)
            ]
        )

    def features(
        self,
        imgs: Any,
        *,
        batch_size: int | None = None,
        float_range: tuple[float, float] | None = None,
    ) -> NDArray[np.float32]:
        """Features, float32 ``[N, F]``: the ViT's class token, then the CNN's pooled map.

        Takes what predict takes; one picture gives ``[1, F]``.
        """
        if is_one(imgs):
            return self.run(self.load(imgs, float_range=float_range)[None])["features"]
        rows = [row["features"] for _, row in self._rows(imgs, batch_size, float_range)]
        return np.stack(rows) if rows else np.empty((0, self.spec.num_features), np.float32)

    def stream(
        self,
        sources: Iterable[Any],
        *,
        batch_size: int | None = None,
        on_error: Literal["yield", "raise"] = "yield",
        decode_threads: int | None = None,
        float_range: tuple[float, float] | None = None,
    ) -> Iterator[Prediction | PredictionError]:
        """Answers for any number of pictures, in order, in constant memory.

        Decoding in threads overlaps the model. A picture that cannot be read gives a
        PredictionError in its place, or raises with ``on_error="raise"``. Sources are taken a few
        batches ahead of the answers.
        """
        if on_error not in ("yield", "raise"):
            raise UsageError(f"on_error is {on_error!r}; expected 'yield' or 'raise'")
        results = self._pipeline(sources, batch_size, float_range, decode_threads)
        return self._stream(results, on_error, float_range)

    def explain(
        self,
        imgs: Any,
        *,
        batch_size: int | None = None,
        float_range: tuple[float, float] | None = None,
    ) -> Explanation | list[Explanation]:
        """Where each branch looked: an Explanation for one picture, a list for many.

        Needs a model exported with ``--explain``; raises ModelFileError for others.
        """
        one = is_one(imgs)
        explanations = []
        for item in self.stream_explained(
            [imgs] if one else imgs, batch_size=batch_size, float_range=float_range
        ):
            if isinstance(item, PredictionError):
                raise item.error
            explanations.append(item)
        return explanations[0] if one else explanations

    def stream_explained(
        self,
        sources: Iterable[Any],
        *,
        batch_size: int | None = None,
        float_range: tuple[float, float] | None = None,
    ) -> Iterator[Explanation | PredictionError]:
        """Explanations for any number of pictures, in order; errors in place of unreadable ones."""
        from hybrid_rt.explain import Explanation, check_heatmaps

        check_heatmaps(self._session.output_names, self._describe_file())
        preprocess = self.spec.preprocess

        def explained() -> Iterator[Explanation | PredictionError]:
            # Each picture is read twice, for the model and for people; a file can be read once.
            rereadable = (s.read() if hasattr(s, "read") else s for s in sources)
            results = self._pipeline(rereadable, batch_size, float_range)
            for i, (source, row) in enumerate(results):
                if isinstance(row, HybridError):
                    yield PredictionError(source=_name(source, i), error=row)
                else:
                    prediction = self._prediction(row, _name(source, i), source, float_range)
                    image = decode(source, preprocess, float_range=float_range)
                    yield Explanation.from_outputs(prediction, row, image, preprocess)

        return explained()

    def selftest(self) -> SelfTest:
        """Run the bundle's golden images here and compare with PyTorch's answers.

        Tells a preprocessing fault (the pixels differ) from an engine fault (the outputs differ).
        Raises ModelFileError where the model has no bundle or no golden images.
        """
        from hybrid_rt.selftest import run_selftest

        if self._model is None or self._model.bundle is None:
            raise ModelFileError(
                f"{self._describe_file()} has no bundle, so no golden images to test with; open "
                "it in the folder that hybrid-export wrote"
            )
        golden = self._model.bundle.load_golden()
        return run_selftest(golden, self._model.entry, self.spec, self.load, self.run)

    # ---- the steps, for servers and other pipelines ----------------------------------------

    def load(self, source: Any, *, float_range: tuple[float, float] | None = None) -> Pixels:
        """One picture as the model's input, uint8 ``[H,W,3]``. Raises ImageError."""
        if self._is_pixels(source, 3):
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

    # ---- facts and life --------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """Pictures a batch where a method is not told otherwise."""
        return self._batch_size

    @property
    def info(self) -> Mapping[str, Any]:
        """What runs where and why, as JSON values."""
        from hybrid_rt.about import engine_info

        return engine_info(self._session, self.spec, self._model)

    def __repr__(self) -> str:
        session = self._session
        state = "closed, " if self._closed else ""
        height, width, _ = self._pixels_shape
        return (
            f"HybridEngine({self._describe_file()!r}, {state}{session.backend} on "
            f"{session.device} ({session.detail}), {height}x{width}, "
            f"{len(self.spec.classes)} classes)"
        )

    def close(self) -> None:
        """Free what the library holds. May be called twice."""
        self._closed = True
        self._session.close()

    def __enter__(self) -> HybridEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is None:
            raise UsageError("an engine made with from_session cannot be pickled; open a file")
        path, asked = self._reopen
        return functools.partial(type(self), **asked), (path,)

    # ---- inside ------------------------------------------------------------------------------

    def _describe_file(self) -> str:
        return "session" if self._model is None else str(self._model.path)

    def _pipeline(
        self,
        sources: Iterable[Any],
        batch_size: int | None,
        float_range: tuple[float, float] | None,
        decode_threads: int | None = None,
    ) -> Iterator[Result]:
        for name, value in (("batch_size", batch_size), ("decode_threads", decode_threads)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; expected a positive integer")
        return run_pipeline(
            sources,
            functools.partial(self.load, float_range=float_range),
            self.run,
            batch_size=batch_size or self._batch_size,
            decode_threads=decode_threads or default_decode_threads(),
            parallel=getattr(self._session, "parallel", 1),
        )

    def _rows(
        self, imgs: Any, batch_size: int | None, float_range: tuple[float, float] | None
    ) -> Iterator[tuple[Any, Outputs]]:
        """Sources with their rows of the outputs; raises the first picture's error."""
        if self._is_pixels(imgs, 4):
            size = batch_size or self._batch_size
            for start in range(0, len(imgs), size):
                batch = imgs[start : start + size]
                outputs = self.run(batch)
                for i, image in enumerate(batch):
                    yield image, {name: values[i] for name, values in outputs.items()}
            return
        if not isinstance(imgs, Iterable):
            raise ImageError(
                f"{type(imgs).__name__} is no picture; expected a path, bytes, a PIL image, an "
                "array or a list of them"
            )
        for i, (source, row) in enumerate(self._pipeline(imgs, batch_size, float_range)):
            if isinstance(row, HybridError):
                raise row if is_named(source) else type(row)(f"image {i}: {row}") from row
            yield source, row

    def _stream(
        self, results: Iterator[Result], on_error: str, float_range: tuple[float, float] | None
    ) -> Iterator[Prediction | PredictionError]:
        for i, (source, row) in enumerate(results):
            if not isinstance(row, HybridError):
                # Only a path is kept for a notebook's picture: memory must not grow.
                kept = source if is_named(source) else None
                yield self._prediction(row, _name(source, i), kept, float_range)
            elif on_error == "raise":
                raise row
            else:
                yield PredictionError(source=_name(source, i), error=row)

    def _prediction(
        self, row: Outputs, name: str, source: Any, float_range: tuple[float, float] | None
    ) -> Prediction:
        picture = None
        if source is not None and not hasattr(source, "read"):
            picture = functools.partial(
                decode, source, self.spec.preprocess, float_range=float_range
            )
        return Prediction.from_outputs(
            self.spec, row["probabilities"], row["logits"], name, picture
        )

    def _is_pixels(self, source: Any, dimensions: int) -> bool:
        """Whether pixels are the model's input already, with no step left to take."""
        return (
            self._identity
            and isinstance(source, np.ndarray)
            and source.dtype == np.uint8
            and source.ndim == dimensions
            and bool(source.shape[-3:] == self._pixels_shape)
        )


def _name(source: Any, index: int) -> str:
    """A path's own name; anything else with its place among the others."""
    name = source_name(source)
    return name if is_named(source) else f"{name} #{index}"
