"""Golden images: a few encoded images with PyTorch's outputs, to test another machine with."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.errors import ModelFileError
from hybrid_rt.files import atomic_path


@dataclass(frozen=True, kw_only=True)
class GoldenImages:
    """Encoded images, the digest of the pixels they must become and PyTorch's outputs.

    ``pixels_sha256[i]`` is pixels_digest of the uint8 ``[height, width, 3]`` array. ``logits``
    ``[n, classes]``, ``probabilities`` ``[n, classes]`` and ``features`` ``[n, features]`` are
    PyTorch's fp32 outputs.
    """

    names: tuple[str, ...]
    encoded: tuple[bytes, ...]
    pixels_sha256: tuple[str, ...]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.names)
        lengths = [len(getattr(self, name)) for name in _GOLDEN_FIELDS]
        if count < 1 or set(lengths) != {count}:
            raise ModelFileError(f"golden images have {lengths} entries; expected equal lengths")
        for name in ("logits", "probabilities", "features"):
            array = getattr(self, name)
            if array.ndim != 2 or array.dtype != np.float32:
                raise ModelFileError(
                    f"golden {name} is {array.dtype} {array.shape}; expected float32 [n, size]"
                )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the npz file, completely or not at all; return its path."""
        path = Path(path)
        arrays: dict[str, NDArray[Any]] = {
            f"encoded_{i}": np.frombuffer(data, np.uint8) for i, data in enumerate(self.encoded)
        }
        arrays["pixels_sha256"] = np.array(self.pixels_sha256, dtype=np.str_)
        arrays["names"] = np.array(self.names, dtype=np.str_)
        for name in ("logits", "probabilities", "features"):
            arrays[name] = getattr(self, name)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GoldenImages:
        """Return what save wrote. Raises ModelFileError if the file is not such an npz."""
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as data:
                names = tuple(str(name) for name in data["names"])
                return cls(
                    names=names,
                    encoded=tuple(data[f"encoded_{i}"].tobytes() for i in range(len(names))),
                    pixels_sha256=tuple(str(digest) for digest in data["pixels_sha256"]),
                    logits=data["logits"],
                    probabilities=data["probabilities"],
                    features=data["features"],
                )
        except ModelFileError:
            raise
        except Exception as err:  # zipfile and numpy raise a dozen kinds on damaged input
            raise ModelFileError(f"{path} is not a golden images file: {err}") from err


_GOLDEN_FIELDS = ("names", "encoded", "pixels_sha256", "logits", "probabilities", "features")


def pixels_digest(pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of one image's pixels in C order, as hexadecimal text."""
    return hashlib.sha256(np.ascontiguousarray(pixels, np.uint8).data).hexdigest()
