"""HybridEngine: images in, predictions out.

engine = HybridEngine("model.onnx")
for p in engine.predict(["a.png", "scan.dcm"]):
    print(p.label, p.probability)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.backends.base import Outputs
from hybrid_rt.errors import HybridError, ImageError, ModelFileError, UsageError
from hybrid_rt.images.load import decode, source_name
from hybrid_rt.images.sources import is_named, is_one
from hybrid_rt.opened import OpenModel
from hybrid_rt.results.prediction import Prediction, PredictionError
from hybrid_rt.results.predictions import Predictions
from hybrid_rt.spec import OperatingPoint
from hybrid_rt.streaming import Result, default_decode_threads, run_pipeline
from hybrid_rt.uncertainty.conformal import By
from hybrid_rt.uncertainty.decision import RuleArguments, Rules, make_rules

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Unpack

    from hybrid_rt.results.explanation import Explanation
    from hybrid_rt.selftest import SelfTest


class HybridEngine(OpenModel):
    """A model, opened once, for any number of images and threads.

    ``path`` is an ONNX file, a TensorRT plan or a bundle's folder, of which the fastest validated
    file for this machine is taken (see hybrid_rt.selection). ``device`` is "auto", "cpu" or
    "cuda:0"; ``backend`` one of backends.registry.BACKENDS; ``precision`` "auto", "fp32" or
    "bf16" (OpenVINO only: the others compute as the file says). ``threads`` bounds the library's
    threads. ``mode`` "throughput" runs batches side by side where the backend can. ``cache`` lets
    OpenVINO keep compiled models on disk, beside the file. ``memory_limit`` bounds ONNX Runtime's
    memory on a GPU, in bytes. ``rebuild`` allows a plan made for another
    GPU or TensorRT version to be built again from the bundle's ONNX.

    Raises ModelFileError, DigestError or SpecError for the file, BackendError (or its kinds
    BackendMissingError and DeviceError) for the machine, UsageError for the arguments.

    Methods may be called from many threads. After ``fork`` a child process opens its own engine;
    an engine can be pickled for ``spawn``: the other process opens the file again.
    """

    @overload
    def predict(
        self,
        imgs: str | os.PathLike[str] | bytes | Image.Image,
        *,
        batch_size: int | None = None,
        float_range: tuple[float, float] | None = None,
        **rules: Unpack[RuleArguments],
    ) -> Prediction: ...
    @overload
    def predict(
        self,
        imgs: list[Any] | tuple[Any, ...],
        *,
        batch_size: int | None = None,
        float_range: tuple[float, float] | None = None,
        **rules: Unpack[RuleArguments],
    ) -> Predictions: ...
    @overload
    def predict(
        self,
        imgs: Any,
        *,
        batch_size: int | None = None,
        float_range: tuple[float, float] | None = None,
        **rules: Unpack[RuleArguments],
    ) -> Any: ...
    def predict(
        self,
        imgs: Any,
        *,
        batch_size: int | None = None,
        float_range: tuple[float, float] | None = None,
        coverage: float | None = None,
        coverage_by: By = "class",
        threshold: float | OperatingPoint | None = None,
        abstain: bool = False,
    ) -> Prediction | Predictions:
        """Return the prediction for one image, or the predictions for many.

        One image (a path, bytes, a file object, a PIL image, an array ``[H,W]`` or ``[H,W,C]``)
        returns a Prediction. Many (a list, another iterable, an array ``[N,H,W,C]``)
        return Predictions in their order. ``float_range`` says what black and white are in float
        arrays, such as (0, 1). Raises ImageError that names the image which cannot be read.

        ``coverage`` 0.9 adds a prediction set that holds the true label for 90% of the
        images of each class (``coverage_by="image"``: of all images together) like those
        it was calibrated on. ``threshold`` decides in place of the spec's operating point.
        ``abstain`` returns no label for an out-of-distribution image. See docs/trust.md; a model
        that lacks the data for an option raises ModelFileError, an invalid option UsageError.
        """
        asked = self.rules(
            coverage=coverage, coverage_by=coverage_by, threshold=threshold, abstain=abstain
        )
        if is_one(imgs):
            outputs = self._judged(self.load(imgs, float_range=float_range)[None])
            row = {name: values[0] for name, values in outputs.items()}
            return self._prediction(row, source_name(imgs), imgs, float_range, asked)
        rows = self._rows(imgs, batch_size, float_range)
        return Predictions(
            [
                self._prediction(row, _name(source, i), source, float_range, asked)
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

        Takes what predict takes; one image returns ``[1, F]``.
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
        **rules: Unpack[RuleArguments],
    ) -> Iterator[Prediction | PredictionError]:
        """Yield predictions for any number of images, in order, in constant memory.

        Decoding in threads overlaps the model. An image that cannot be read yields
        a PredictionError in its place, or raises with ``on_error="raise"``. Sources are taken a few
        batches ahead of the predictions. ``rules`` are predict's coverage, threshold and abstain.
        """
        if on_error not in ("yield", "raise"):
            raise UsageError(f"on_error is {on_error!r}; expected 'yield' or 'raise'")
        asked = self.rules(**rules)
        results = self._pipeline(sources, batch_size, float_range, decode_threads)
        return self._stream(results, on_error, float_range, asked)

    def explain(
        self,
        imgs: Any,
        *,
        batch_size: int | None = None,
        float_range: tuple[float, float] | None = None,
        **rules: Unpack[RuleArguments],
    ) -> Explanation | list[Explanation]:
        """Where each branch looked: an Explanation for one image, a list for many.

        ``rules`` are predict's coverage, threshold and abstain.
        Needs a model exported with ``--explain``; raises ModelFileError for others.
        """
        one = is_one(imgs)
        explanations = []
        for item in self.stream_explained(
            [imgs] if one else imgs, batch_size=batch_size, float_range=float_range, **rules
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
        **rules: Unpack[RuleArguments],
    ) -> Iterator[Explanation | PredictionError]:
        """Explanations for any number of images, in order; errors in place of unreadable ones."""
        from hybrid_rt.results.explanation import Explanation, check_heatmaps

        check_heatmaps(self._session.output_names, self._describe_file())
        preprocess = self.spec.preprocess
        asked = self.rules(**rules)

        def explained() -> Iterator[Explanation | PredictionError]:
            # Each image is read twice, for the model and for people; a file can be read once.
            rereadable = (s.read() if hasattr(s, "read") else s for s in sources)
            results = self._pipeline(rereadable, batch_size, float_range)
            for i, (source, row) in enumerate(results):
                if isinstance(row, HybridError):
                    yield PredictionError(source=_name(source, i), error=row)
                else:
                    prediction = self._prediction(row, _name(source, i), source, float_range, asked)
                    image = decode(source, preprocess, float_range=float_range)
                    yield Explanation.from_outputs(prediction, row, image, preprocess)

        return explained()

    def selftest(self) -> SelfTest:
        """Run the bundle's golden images here and compare with PyTorch's outputs.

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
        model = self._model
        return run_selftest(
            golden, model.entry, self.spec, self.load, self.run, report=model.report
        )

    def rules(self, **asked: Unpack[RuleArguments]) -> Rules:
        """predict's coverage, coverage_by, threshold and abstain, checked against this model.

        Raises ModelFileError if the model lacks the data, UsageError if an argument is invalid.
        """
        rules = make_rules(self.spec, **asked)
        if rules.abstain:
            self.check_ood()
        return rules

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
            self._judged,
            batch_size=batch_size or self._batch_size,
            decode_threads=decode_threads or default_decode_threads(),
            parallel=getattr(self._session, "parallel", 1),
        )

    def _rows(
        self, imgs: Any, batch_size: int | None, float_range: tuple[float, float] | None
    ) -> Iterator[tuple[Any, Outputs]]:
        """Sources with their rows of the outputs; raises the first image's error."""
        if float_range is None and self._are_pixels(imgs):  # no decoding to overlap
            size = batch_size or self._batch_size
            for start in range(0, len(imgs), size):
                batch = imgs[start : start + size]
                outputs = self._judged(np.stack(batch) if isinstance(batch, list) else batch)
                for i, image in enumerate(batch):
                    yield image, {name: values[i] for name, values in outputs.items()}
            return
        if not isinstance(imgs, Iterable):
            raise ImageError(
                f"{type(imgs).__name__} is no image; expected a path, bytes, a PIL image, an "
                "array or a list of them"
            )
        for i, (source, row) in enumerate(self._pipeline(imgs, batch_size, float_range)):
            if isinstance(row, HybridError):
                raise row if is_named(source) else type(row)(f"image {i}: {row}") from row
            yield source, row

    def _are_pixels(self, imgs: Any) -> bool:
        if isinstance(imgs, list):
            return all(self._is_pixels(image, 3) for image in imgs)
        return self._is_pixels(imgs, 4)

    def _stream(
        self,
        results: Iterator[Result],
        on_error: str,
        float_range: tuple[float, float] | None,
        rules: Rules,
    ) -> Iterator[Prediction | PredictionError]:
        for i, (source, row) in enumerate(results):
            if not isinstance(row, HybridError):
                # Only a path is kept for a notebook's image: memory must not grow.
                kept = source if is_named(source) else None
                yield self._prediction(row, _name(source, i), kept, float_range, rules)
            elif on_error == "raise":
                raise row
            else:
                yield PredictionError(source=_name(source, i), error=row)

    def _prediction(
        self,
        row: Outputs,
        name: str,
        source: Any,
        float_range: tuple[float, float] | None,
        rules: Rules,
    ) -> Prediction:
        load_image = None
        if source is not None and not hasattr(source, "read"):
            load_image = functools.partial(
                decode, source, self.spec.preprocess, float_range=float_range
            )
        return Prediction.from_outputs(
            self.spec,
            row["probabilities"],
            row["logits"],
            name,
            load_image,
            rules=rules,
            ood_score=float(row["ood_score"]) if "ood_score" in row else None,
        )


def _name(source: Any, index: int) -> str:
    """A path's own name; anything else with its place among the others."""
    name = source_name(source)
    return name if is_named(source) else f"{name} #{index}"
