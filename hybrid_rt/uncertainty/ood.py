"""Out-of-distribution detection by the features that the model computes anyway.

A Gaussian is fitted to the training images' features; the score is its Mahalanobis distance (Lee et
al., NeurIPS 2018). There is one Gaussian for all classes. Its covariance is shrunk to a few
directions and a common rest (Tipping and Bishop, JRSS-B 1999), so that an image takes one small
matrix product. The distance is divided by a threshold that all but a few validation images stay
below, so that a score above 1 means out of distribution.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.errors import DigestError, ModelFileError, SpecError
from hybrid_rt.files import atomic_path, sha256_bytes
from hybrid_rt.serialization import from_plain, to_plain
from hybrid_rt.spec import ModelSpec

_log = logging.getLogger("hybrid_rt")

#: Where the entry lies in ModelSpec.extras, and the file beside checkpoint and model.
EXTRAS_KEY = "ood"
OOD_NAME = "model.ood.npz"

Floats = NDArray[np.float32]

_MAX_BYTES = 256 << 20
_ARRAYS = ("mean", "scale", "basis", "variances", "rest", "reference")


@dataclass(frozen=True, kw_only=True)
class OodEntry:
    """The spec's entry for the file: ``spec.extras["ood"]``.

    ``false_alarms`` is the share of images like the validation images that are flagged.
    """

    file: str
    sha256: str
    false_alarms: float
    method: Literal["mahalanobis"] = "mahalanobis"

    def __post_init__(self) -> None:
        if not self.file or self.file.startswith(".") or any(c in self.file for c in "/\\\0"):
            raise SpecError(f"ood.file is {self.file[:60]!r}; expected a plain file name")
        if len(self.sha256) != 64 or any(c not in "0123456789abcdef" for c in self.sha256):
            raise SpecError(f"ood.sha256 is {self.sha256[:70]!r}; expected 64 hexadecimal digits")
        if not 0 < self.false_alarms < 1:
            raise SpecError(f"ood.false_alarms is {self.false_alarms}; expected between 0 and 1")

    @classmethod
    def of(cls, spec: ModelSpec) -> OodEntry | None:
        """Return a spec's entry, or None if it has none. Raises SpecError if it is invalid."""
        data = spec.extras.get(EXTRAS_KEY)
        return None if data is None else from_plain(cls, data, f"extras.{EXTRAS_KEY}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for ``spec.extras["ood"]``."""
        return dict(to_plain(self))


@dataclass(frozen=True, kw_only=True, eq=False)
class OodDetector:
    """The fitted Gaussian and the validation images' distances.

    ``mean`` and ``scale`` ``[F]`` standardize features; ``basis`` ``[k, F]`` holds orthonormal
    directions with ``variances`` ``[k]``; ``rest`` ``[1]`` is the variance of all others.
    ``reference`` ``[n]`` are the distances of validation images, rising. All float32.
    """

    mean: Floats
    scale: Floats
    basis: Floats
    variances: Floats
    rest: Floats
    reference: Floats
    false_alarms: float = 0.01

    def __post_init__(self) -> None:
        size, kept = self.mean.size, self.basis.shape[0] if self.basis.ndim == 2 else -1
        expected = {
            "mean": (size,),
            "scale": (size,),
            "basis": (kept, size),
            "variances": (kept,),
            "rest": (1,),
            "reference": (self.reference.size,),
        }
        for name, shape in expected.items():
            array = getattr(self, name)
            if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
                raise ModelFileError(
                    f"OOD detector's {name} is {array.dtype} {array.shape}; expected finite "
                    f"float32 {shape}"
                )
        if not self.reference.size or (np.diff(self.reference) < 0).any():
            raise ModelFileError(
                "OOD detector's reference; expected distances that rise, at least one"
            )
        if any((getattr(self, n) <= 0).any() for n in ("scale", "variances", "rest")):
            raise ModelFileError(
                "OOD detector's scale, variances and rest; expected positive numbers"
            )
        if self.threshold <= 0:
            raise ModelFileError("OOD detector's threshold is 0; expected a positive distance")

    def distances(self, features: NDArray[Any]) -> Floats:
        """Return Mahalanobis distances ``[n]`` of features ``[n, F]``, divided by sqrt(F)."""
        with np.errstate(all="ignore"):  # not finite: out of distribution, see score
            centred = (np.asarray(features, np.float32) - self.mean) / self.scale
            along = centred @ self.basis.T  # [n, k]
            rest = centred - along @ self.basis  # outside all directions
            squared = (along**2 / self.variances).sum(1) + (rest**2).sum(1) / self.rest
            distances: Floats = np.sqrt(squared / np.float32(self.mean.size))
        return distances

    @property
    def threshold(self) -> float:
        """The distance above which an image is out of distribution.

        With n validation images it is the ceil((n + 1) * (1 - false_alarms))-th smallest of
        theirs, or the largest if n is too small for that. A further image like them exceeds it at
        most that often (Bates et al., Annals of Statistics 2023).
        """
        count = len(self.reference)
        rank = min(math.ceil((count + 1) * (1 - self.false_alarms) - 1e-9), count)
        return float(self.reference[rank - 1])

    def score(self, features: NDArray[Any]) -> Floats:
        """Return finite scores ``[n]``, distances over the threshold; above 1 is OOD."""
        scores = self.distances(features) / np.float32(self.threshold)
        worst = float(np.finfo(np.float32).max)
        finite: Floats = np.nan_to_num(scores, nan=worst, posinf=worst)
        return finite

    def save(self, path: str | os.PathLike[str]) -> OodEntry:
        """Write the npz file, completely or not at all; return the spec's entry for it."""
        path = Path(path)
        buffer = io.BytesIO()
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez(buffer, allow_pickle=False, **arrays)
        data = buffer.getvalue()
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        return OodEntry(file=path.name, sha256=sha256_bytes(data), false_alarms=self.false_alarms)

    @staticmethod
    def check(folder: Path, spec: ModelSpec, *, in_bundle: bool) -> None:
        """Raise ModelFileError if a bundle lacks the detector's file; log it for a lone model.

        Without the file no image is flagged, so its absence must not pass unseen.
        """
        entry = OodEntry.of(spec)
        if entry is None or (folder / entry.file).exists():
            return
        text = (
            f"{entry.file} is not in {folder}, so no image would be flagged as out-of-distribution"
        )
        if in_bundle:
            raise ModelFileError(f"{text}; copy the complete bundle again or export it again")
        _log.warning("%s; copy it there from the model's bundle", text)

    @classmethod
    def load(cls, folder: Path, spec: ModelSpec) -> OodDetector | None:
        """Return the detector of a spec and its folder; None if there is none or no such file.

        Raises DigestError if the file is another one, ModelFileError if it does not fit.
        """
        entry = OodEntry.of(spec)
        if entry is None:
            return None
        path = folder / entry.file
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ModelFileError(f"{path} is larger than {_MAX_BYTES >> 20} MiB")
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as err:
            raise ModelFileError(f"{path} cannot be read ({err.strerror})") from err
        if sha256_bytes(data) != entry.sha256:
            raise DigestError(
                f"{path} is not the file that the model's specification names (SHA-256 "
                f"{sha256_bytes(data)[:12]}…, expected {entry.sha256[:12]}…); copy the complete "
                "bundle again or export it again"
            )
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in _ARRAYS}
            detector = cls(**found, false_alarms=entry.false_alarms)
        except ModelFileError as err:
            raise ModelFileError(f"{path}: {err}") from err
        except Exception as err:  # zipfile and numpy raise a dozen kinds on damaged input
            raise ModelFileError(f"{path} is not an out-of-distribution file: {err}") from err
        if detector.mean.size != spec.num_features:
            raise ModelFileError(
                f"{path} is for {detector.mean.size} features; the model has {spec.num_features}: "
                "export it again"
            )
        return detector


def why_missing(extras: Mapping[str, Any], folder: Path | None) -> str:
    """Return what to do about a model without an out-of-distribution detector."""
    if EXTRAS_KEY not in extras:
        return (
            "this model has no out-of-distribution detector, so it cannot abstain; train it again "
            "with this version of hybrid-train, which keeps what is needed, and export it"
        )
    name = extras[EXTRAS_KEY]["file"]
    where = "beside the model" if folder is None else f"in {folder}"
    return f"{name} is not {where}, so the model cannot abstain; copy the complete bundle"
