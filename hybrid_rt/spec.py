"""ModelSpec: what a model is, in one plain, frozen, validated description.

The trainer writes it, the exporter completes it, the runtime follows it. It travels as JSON in the
checkpoint's metadata, in the ONNX ``metadata_props`` and in the bundle's ``model.json``. It holds
all that turns an image into the network's input and the network's output into a prediction.
"""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import replace as _replace
from typing import Any, Literal

from hybrid_rt.errors import SpecError
from hybrid_rt.serialization import from_plain, to_plain

SCHEMA_VERSION = 2

#: Key under which the JSON text travels in ONNX ``metadata_props`` and safetensors metadata.
METADATA_KEY = "hybrid_rt.spec"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the network's uint8 input of shape ``[height, width, 3]``, RGB.

    The steps, in order: decode, apply EXIF orientation, window to 8 bits, compose alpha over
    black, crop, convert to RGB, resize.
    """

    height: int = 224  # pixels
    width: int = 224  # pixels
    #: "stretch" ignores the aspect ratio; "fit" keeps it and pads with black, centred; "fill"
    #: scales the short side and crops the centre.
    resize: Literal["stretch", "fit", "fill"] = "stretch"
    #: Pillow's filter of that name, with antialiasing.
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    #: "breast" keeps the bounding box of the breast and drops scan borders and view labels.
    crop: Literal["none", "breast"] = "none"
    #: Integer images of more than 8 bits that are not DICOM: "full" maps the type's complete range
    #: (0..65535) to 0..255, "minmax" maps the image's own range.
    high_bit_depth: Literal["full", "minmax"] = "full"
    #: DICOM: "stored" applies the file's VOI LUT or window and falls back to the image's own
    #: range if there is none; "minmax" always takes the image's own range.
    dicom_window: Literal["stored", "minmax"] = "stored"

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if not 8 <= value <= 8192:
                raise SpecError(f"preprocess.{name} is {value}; expected 8 to 8192 pixels")


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One backbone: its timm name, how many features it returns and its input normalization."""

    model: str
    features: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not self.model:
            raise SpecError("branch.model is empty; expected a timm model name")
        if self.features < 1:
            raise SpecError(f"branch.features is {self.features}; expected at least 1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise SpecError(f"branch.{name} is {values}; expected three finite numbers")
        if min(self.std) <= 0:
            raise SpecError(f"branch.std is {self.std}; expected positive numbers")


@dataclass(frozen=True, kw_only=True)
class Head:
    """The classifier on the concatenated features.

    ``kind`` "mlp" is Linear, ReLU, LayerNorm, Dropout for each hidden size and a last Linear;
    "simple" is Linear, ReLU for each hidden size and a last Linear.
    """

    kind: Literal["mlp", "simple"] = "mlp"
    hidden: tuple[int, ...] = (1024, 512, 256, 128, 64)
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.hidden):
            raise SpecError(f"head.hidden is {self.hidden}; expected positive sizes")
        if not 0 <= self.dropout < 1:
            raise SpecError(f"head.dropout is {self.dropout}; expected 0 or more and below 1")


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output of the deployment graph; a text dimension such as "batch" is dynamic."""

    name: str
    shape: tuple[int | str, ...]
    dtype: Literal["float32"] = "float32"


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A decision threshold on one class's probability, chosen on validation data.

    A probability at or above ``threshold`` is a positive decision. ``criterion`` is what it was
    chosen for, such as "sensitivity>=0.9"; the intervals are 95% bootstrap intervals.
    """

    positive: str
    threshold: float
    criterion: str
    sensitivity: float | None = None
    sensitivity_interval: tuple[float, float] | None = None
    specificity: float | None = None
    specificity_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise SpecError(f"operating_point.threshold is {self.threshold}; expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The contract of one model.

    Raises SpecError if a field is missing, unknown, of the wrong type or impossible; the message
    names the field.
    """

    classes: tuple[str, ...]
    preprocess: Preprocess
    vit: Branch
    cnn: Branch
    head: Head
    outputs: tuple[Output, ...] = ()
    #: What was learned, such as the label column's name.
    task: str = "classification"
    #: Logits are divided by this before the softmax (Guo et al. 2017); fitted on validation data.
    temperature: float = 1.0
    operating_point: OperatingPoint | None = None
    #: Where it came from: data fingerprint, seed, commit, library versions, metrics. JSON values.
    provenance: Mapping[str, Any] = field(default_factory=dict)
    #: Optional extras, by name, for abilities a bundle may have. JSON values.
    extras: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise SpecError(
                f"schema_version is {self.schema_version}; this hybrid-rt reads version "
                f"{SCHEMA_VERSION}: export the model again or install the matching release"
            )
        if len(self.classes) < 2:
            raise SpecError(f"classes is {self.classes}; expected two names or more")
        if len(set(self.classes)) != len(self.classes):
            raise SpecError(f"classes is {self.classes}; expected names that differ")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise SpecError(f"temperature is {self.temperature}; expected a positive number")
        point = self.operating_point
        if point is not None and point.positive not in self.classes:
            raise SpecError(
                f"operating_point.positive is {point.positive!r}; expected one of {self.classes}"
            )

    @property
    def num_features(self) -> int:
        """Length of the feature vector: the ViT's features, then the CNN's."""
        return self.vit.features + self.cnn.features

    def replace(self, **changes: Any) -> ModelSpec:
        """Return a copy with some fields changed."""
        return _replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers, ready for JSON."""
        return typing.cast("dict[str, Any]", to_plain(self))

    def to_json(self) -> str:
        """Return compact JSON text with sorted keys: equal specs have equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Return the spec of to_dict's values. Raises SpecError."""
        if isinstance(data, Mapping) and "schema_version" not in data:
            raise SpecError("spec has no schema_version; expected the JSON of a ModelSpec")
        if isinstance(data, Mapping) and data["schema_version"] != SCHEMA_VERSION:
            raise SpecError(
                f"schema_version is {data['schema_version']!r}; this hybrid-rt reads version "
                f"{SCHEMA_VERSION}: export the model again or install the matching release"
            )
        return from_plain(cls, data, "spec")

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelSpec:
        """Return the spec of to_json's text. Raises SpecError."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise SpecError(f"spec is not JSON: {err}") from err
        return cls.from_dict(data)
