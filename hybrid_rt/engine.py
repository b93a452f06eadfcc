"""HybridEngine: images in, predictions out.

engine = HybridEngine("model.onnx")
for p in engine.predict(["a.png", "scan.dcm"]):
    print(p.label, p.probability)
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.backends.base import Outputs, Pixels, Session, check_positive
from hybrid_rt.bundle.manifest import Bundle
from hybrid_rt.environment import packages
from hybrid_rt.errors import BackendError, DigestError, ImageError, ModelFileError, UsageError
from hybrid_rt.images.arrays import is_input
from hybrid_rt.images.load import load_pixels
from hybrid_rt.images.sources import as_sources, source_name
from hybrid_rt.opening import open_model
from hybrid_rt.results.explanation import Explanation, check_heatmaps
from hybrid_rt.results.prediction import Prediction, PredictionError
from hybrid_rt.results.predictions import Predictions
from hybrid_rt.results.rows import RowReader
from hybrid_rt.selection import ModelFile
from hybrid_rt.selftest import SelfTest, run_selftest
from hybrid_rt.spec import ModelSpec, OperatingPoint
from hybrid_rt.streaming import Pipeline
from hybrid_rt.uncertainty.conformal import By
from hybrid_rt.uncertainty.decision import RuleArguments, Rules, make_rules
from hybrid_rt.uncertainty.ood import OodDetector, why_missing

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self, Unpack

_Range: TypeAlias = "tuple[float, float] | None"


class PredictOptions(RuleArguments, total=False):
    """Keyword arguments of HybridEngine.predict."""

    batch_size: int | None
    float_range: tuple[float, float] | None


class HybridEngine:
    """A model, opened once, for any number of images and threads.

    Methods may be called from many threads. After ``fork`` a child process opens its own engine.
    An engine can be pickled for ``spawn``: the other process opens the file again.

    Args:
        path: An ONNX file, a TensorRT plan or a bundle's folder. Of a folder the fastest validated
            file for this machine is opened (see hybrid_rt.selection).
        device: "auto", "cpu" or "cuda:0".
        backend: One of backends.registry.BACKENDS; by default chosen from the file and machine.
        precision: "auto", "fp32" or "bf16". Only OpenVINO computes in another precision than the
            file's.
        threads: The most threads that the library uses.
        batch_size: Images in a batch, unless a method is called with another number.
        mode: "throughput" runs batches side by side if the backend can.
        cache: Whether OpenVINO may keep compiled models on disk, beside the file.
        memory_limit: Bytes of GPU memory that ONNX Runtime may use.
        rebuild: Whether a plan for another GPU or TensorRT version may be replaced by an engine
            that is built from the bundle's ONNX.

    Raises:
        ModelFileError, DigestError, SpecError: If the file is missing, damaged or does not fit.
        BackendError: If the machine cannot run it; also as BackendMissingError or DeviceError.
        UsageError: If an argument is invalid.
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
        session, model = open_model(Path(path), **asked)
        try:
            OodDetector.check(model.path.parent, model.spec, in_bundle=model.bundle is not None)
        except BaseException:
            session.close()
            raise
        self._reopen: dict[str, Any] | None = asked
        self._set_up(session, model.spec, model, batch_size)

    @classmethod
    def from_session(
        cls,
        session: Session,
        spec: ModelSpec,
        *,
        bundle: Bundle | None = None,
        batch_size: int = 8,
    ) -> Self:
        """Return an engine on a session of your own, such as testing.FakeSession."""
        engine = cls.__new__(cls)
        engine._reopen = None
        model = None
        if bundle is not None:
            path = (bundle.folder or Path()) / "session"
            model = ModelFile(path=path, spec=spec, reason="opened by the caller", bundle=bundle)
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
        self._folder = None if model is None else model.path.parent
        # Of the file that is open: another process may have another working folder.
        self._path = None if model is None else model.path.absolute()
        self._identity = None if self._reopen is None else _identity(self._path, model)
        self._ood = None if self._folder is None else OodDetector.load(self._folder, spec)

    @overload
    def predict(
        self, imgs: bytes | Image.Image, **options: Unpack[PredictOptions]
    ) -> Prediction: ...
    @overload
    def predict(
        self, imgs: list[Any] | tuple[Any, ...], **options: Unpack[PredictOptions]
    ) -> Predictions: ...
    @overload
    def predict(self, imgs: Any, **options: Unpack[PredictOptions]) -> Any: ...
    def predict(
        self,
        imgs: Any,
        *,
        batch_size: int | None = None,
        float_range: _Range = None,
        coverage: float | None = None,
        coverage_by: By = "class",
        threshold: float | OperatingPoint | None = None,
        abstain: bool = False,
    ) -> Prediction | Predictions:
        """Return the prediction for one image, or the predictions for many in their order.

        ``engine(imgs)`` is the same.

        Args:
            imgs: One image (the path of a file, bytes, a file object, a PIL image, a pydicom
                Dataset, an array ``[H,W]`` or ``[H,W,C]``) or many (a list, another iterable, an
                array ``[N,H,W,C]``, the path of a folder, a glob pattern).
            batch_size: Images in a batch.
            float_range: The values of black and white in float arrays, such as (0, 1).
            coverage: Adds a prediction set. At 0.9 it holds the true label for 90% of the images
                of each class like those that it was calibrated on.
            coverage_by: "image" counts the coverage over all images together.
            threshold: Decides in place of the spec's operating point.
            abstain: Whether an out-of-distribution image has no label. See docs/trust.md.

        Raises:
            ImageError: If an image cannot be read; the message names it.
            ModelFileError: If the model lacks the data for an option.
            UsageError: If an option is invalid.
        """
        rules = self.rules(
            coverage=coverage, coverage_by=coverage_by, threshold=threshold, abstain=abstain
        )
        reader = RowReader(spec=self.spec, rules=rules, float_range=float_range)
        sources = as_sources(imgs)
        rows = self._pipeline(batch_size, float_range).run_all(sources)
        predictions = [reader.prediction(*found) for found in rows]
        return predictions[0] if sources.is_one else Predictions(predictions)

    def __call__(self, imgs: Any, **options: Unpack[PredictOptions]) -> Any:
        """Return ``predict(imgs, **options)``."""
        return self.predict(imgs, **options)

    def features(
        self, imgs: Any, *, batch_size: int | None = None, float_range: _Range = None
    ) -> NDArray[np.float32]:
        """Return features, float32 ``[N, F]``: the ViT's class token, then the CNN's pooled map.

        Takes what predict takes; one image returns ``[1, F]``.
        """
        found = self._pipeline(batch_size, float_range).run_all(as_sources(imgs))
        rows = [row["features"] for _, _, row in found]
        return np.stack(rows) if rows else np.empty((0, self.spec.num_features), np.float32)

    def stream(
        self,
        imgs: Any,
        *,
        batch_size: int | None = None,
        on_error: Literal["yield", "raise"] = "yield",
        decode_threads: int | None = None,
        float_range: _Range = None,
        **rules: Unpack[RuleArguments],
    ) -> Iterator[Prediction | PredictionError]:
        """Yield predictions for any number of images, in order, in constant memory.

        Takes what predict takes. Decoding in threads overlaps the model; images are taken a few
        batches ahead of the predictions. An image that cannot be read yields a PredictionError in
        its place, or raises with ``on_error="raise"``.
        """
        if on_error not in ("yield", "raise"):
            raise UsageError(f"on_error is {on_error!r}; expected 'yield' or 'raise'")
        reader = RowReader(spec=self.spec, rules=self.rules(**rules), float_range=float_range)
        pipeline = self._pipeline(batch_size, float_range, decode_threads)
        return reader.predictions(pipeline.stream(as_sources(imgs).items), on_error)

    def explain(
        self,
        imgs: Any,
        *,
        batch_size: int | None = None,
        float_range: _Range = None,
        **rules: Unpack[RuleArguments],
    ) -> Explanation | list[Explanation]:
        """Return where each branch looked: an Explanation for one image, a list for many.

        Takes what predict takes. Raises ModelFileError unless the model was exported with
        ``--explain``.
        """
        sources = as_sources(imgs)
        explanations = []
        for item in self.stream_explained(
            sources.items, batch_size=batch_size, float_range=float_range, **rules
        ):
            if isinstance(item, PredictionError):
                raise item.error
            explanations.append(item)
        return explanations[0] if sources.is_one else explanations

    def stream_explained(
        self,
        imgs: Any,
        *,
        batch_size: int | None = None,
        float_range: _Range = None,
        **rules: Unpack[RuleArguments],
    ) -> Iterator[Explanation | PredictionError]:
        """Yield explanations for any number of images, in order, with errors in their place."""
        check_heatmaps(self._session.output_names, self._describe_file())
        reader = RowReader(spec=self.spec, rules=self.rules(**rules), float_range=float_range)
        # Each image is read twice, for the model and for people; a file can be read once.
        rereadable = (_read_once(source) for source in as_sources(imgs).items)
        return reader.explanations(self._pipeline(batch_size, float_range).stream(rereadable))

    def selftest(self) -> SelfTest:
        """Run the bundle's golden images here and compare with PyTorch's outputs.

        Separates preprocessing faults (the pixels differ) from engine faults (the outputs differ).
        Raises ModelFileError if the model has no bundle or no golden images.
        """
        model = self._model
        if model is None or model.bundle is None:
            raise ModelFileError(
                f"{self._describe_file()} has no bundle, so no golden images to test with; open "
                "it in the folder that hybrid-export wrote"
            )
        golden = model.bundle.load_golden()
        return run_selftest(
            golden, model.entry, self.spec, self.load, self.run, report=model.report
        )

    def rules(self, **asked: Unpack[RuleArguments]) -> Rules:
        """Return predict's coverage, threshold and abstain, checked against this model.

        Raises ModelFileError if the model lacks the data, UsageError if an argument is invalid.
        """
        rules = make_rules(self.spec, **asked)
        if rules.abstain and self._ood is None:
            raise ModelFileError(why_missing(self.spec.extras, self._folder))
        return rules

    def load(self, source: Any, *, float_range: _Range = None) -> Pixels:
        """Return one image as the model's input, uint8 ``[H,W,3]``. Raises ImageError."""
        if self._is_ready(source, 3, float_range):
            pixels: Pixels = source
            return pixels
        return load_pixels(source, self.spec.preprocess, float_range=float_range)

    def run(self, images: Pixels) -> Outputs:
        """Return the graph's outputs by name for pixels from ``load``, uint8 ``[N,H,W,3]``.

        The caller owns the arrays. Raises BackendError if the engine is closed or was opened in
        another process, ImageError if the pixels do not fit.
        """
        if self._closed:
            raise BackendError("this engine is closed; open the model again")
        if os.getpid() != self._process:
            raise BackendError(
                "this engine was opened before fork() in another process, and its threads were "
                "not copied; open one in each process, or start processes with 'spawn'"
            )
        size = self.spec.preprocess
        if not is_input(images, size, 4) or not len(images):
            raise ImageError(
                f"{source_name(images)} as the model's input; expected uint8 "
                f"[N,{size.height},{size.width},3] with N at least 1: use predict, which resizes"
            )
        if not images.flags.c_contiguous:
            images = np.ascontiguousarray(images)
        return self._session.run(images)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the outputs."""
        return self.spec.classes

    @property
    def batch_size(self) -> int:
        """Images in a batch, unless a method is called with another number."""
        return self._batch_size

    @property
    def detects_ood(self) -> bool:
        """Whether predictions have an ``ood_score``: the model has a detector."""
        return self._ood is not None

    @property
    def info(self) -> Mapping[str, Any]:
        """What runs where and why, as JSON values."""
        session, model, size = self._session, self._model, self.spec.preprocess
        entry = None if model is None else model.entry
        report = None if entry is None else entry.parity_report
        return {
            "path": None if model is None else str(model.path),
            "reason": "opened by the caller" if model is None else model.reason,
            "backend": session.backend,
            "device": session.device,
            "detail": session.detail,
            "precision": None if entry is None else entry.precision,
            "sha256": None if entry is None else entry.sha256,
            "validated_by": None if model is None else model.validated_by,
            "parity_report": None if report is None else dict(report),
            "classes": list(self.classes),
            "input": [size.height, size.width, 3],
            "outputs": list(session.output_names),
            "versions": {"python": platform.python_version(), **packages()},
        }

    def __repr__(self) -> str:
        session, size = self._session, self.spec.preprocess
        state = "closed, " if self._closed else ""
        return (
            f"{type(self).__name__}({self._describe_file()!r}, {state}{session.backend} on "
            f"{session.device} ({session.detail}), {size.height}x{size.width}, "
            f"{len(self.classes)} classes)"
        )

    def close(self) -> None:
        """Free what the library holds. May be called twice.

        In a child that was forked from the engine's process it frees nothing: the library's threads
        are the parent's.
        """
        self._closed = True
        if os.getpid() == self._process:
            self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is None:
            raise UsageError("an engine made with from_session cannot be pickled; open a file")
        assert self._model is not None
        return _reopen, (type(self), self._path, self._identity, self._reopen)

    def _pipeline(
        self, batch_size: int | None, float_range: _Range, decode_threads: int | None = None
    ) -> Pipeline:
        check_positive(batch_size=batch_size, decode_threads=decode_threads)
        return Pipeline(
            load=functools.partial(self.load, float_range=float_range),
            run=self._scored,
            is_ready=functools.partial(self._is_ready, float_range=float_range),
            batch_size=batch_size or self._batch_size,
            decode_threads=decode_threads,
            parallel=getattr(self._session, "parallel", 1),
        )

    def _scored(self, images: Pixels) -> Outputs:
        """What ``run`` returns, with each image's ``ood_score`` ``[N]`` if there is a detector."""
        outputs = self.run(images)
        if self._ood is not None:
            outputs["ood_score"] = self._ood.score(outputs["features"])
        return outputs

    def _is_ready(self, source: Any, dimensions: int, float_range: _Range) -> bool:
        """Whether a source is the model's input; a crop would look at its content."""
        preprocess = self.spec.preprocess
        ready = float_range is None and preprocess.crop == "none"
        return ready and is_input(source, preprocess, dimensions)

    def _describe_file(self) -> str:
        return "session" if self._model is None else str(self._model.path)


def _identity(path: Path | None, model: ModelFile | None) -> str | tuple[int, int] | None:
    """The file's SHA-256 if its bundle has it, else its size and time of change in ns."""
    if path is None or model is None:
        return None
    if model.entry is not None:
        return model.entry.sha256
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _reopen(
    kind: type[HybridEngine], path: Path, identity: object, asked: dict[str, Any]
) -> HybridEngine:
    """Open a pickled engine's file. Raises DigestError if it was replaced in between."""
    engine = kind(path, **asked)
    if engine._identity != identity:
        engine.close()
        raise DigestError(
            f"{path} was replaced after the engine that opened it was pickled; open the model "
            "again and pickle that engine"
        )
    return engine


def _read_once(source: Any) -> Any:
    """The bytes of a file object, which can be read once; anything else as it is."""
    if not hasattr(source, "read"):
        return source
    data = source.read()
    if not isinstance(data, (bytes, bytearray)):
        raise ImageError(
            f"{source_name(source)} returns text; expected bytes: open the file with mode 'rb'"
        )
    return bytes(data)
