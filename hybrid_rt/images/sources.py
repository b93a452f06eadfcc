"""Image sources: one image or many, their names, and the image files of folders and globs.

``as_sources`` is the only place that decides whether an argument is one image or many. The engine,
``load_batch`` and ``hybrid-predict`` call it.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_rt.errors import ImageError
from hybrid_rt.images import arrays

#: A path, encoded bytes, a binary file object, a PIL image, an array or tensor, or a pydicom
#: Dataset. Tensors and datasets have no type here: their libraries are not imported.
Source: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any] | Any"

#: Suffixes of the files that are taken from a folder. A file without a suffix may be DICOM.
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".dcm", ".dicom", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp", "")
)


class Sources(NamedTuple):
    """The images of one argument: ``items``, and whether the argument was one image.

    ``items`` is a list, an array ``[N,H,W,C]`` or the caller's own iterable.
    """

    items: Iterable[Any]
    is_one: bool


def as_sources(imgs: Source | Iterable[Source]) -> Sources:
    """Return the images that an argument names, and whether it is one image or many.

    One: the path of a file, bytes, a file object, a PIL image, a pydicom Dataset, an array
    ``[H,W]`` or ``[H,W,C]``. Many: a list, a tuple, another iterable, an array ``[N,H,W,C]``, and
    a ``str`` or path that names a folder or is a glob pattern. Each entry of a list or iterable is
    one image. A path that does not exist is one image, so that reading it raises the error.

    Raises:
        ImageError: If the argument is neither (a dict), or a folder or glob has no images.
    """
    if isinstance(imgs, (str, os.PathLike)):
        files = _files_of(os.fspath(imgs))
        return Sources([imgs], True) if files is None else Sources(files, False)
    if isinstance(imgs, (bytes, bytearray, memoryview, Image.Image)):
        return Sources([imgs], True)
    if arrays.is_array(imgs):
        return _of_array(imgs)
    if hasattr(imgs, "read") or is_dataset(imgs):
        return Sources([imgs], True)
    if isinstance(imgs, Iterable) and not isinstance(imgs, Mapping):
        return Sources(imgs, False)
    raise ImageError(unknown_type(imgs))


def own_copy(source: Source) -> Source:
    """Return the source, or a copy of one that its owner may change later.

    A generator may refill one array, buffer, PIL image or file object for every image.
    """
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, Image.Image):
        return source.copy()
    if arrays.is_array(source):
        return np.array(arrays.to_numpy(source), copy=True)
    if hasattr(source, "read"):
        return _HeldFile.of(source)
    return source


def is_named(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Return whether an image has a name of its own: it is a path."""
    return isinstance(source, (str, os.PathLike))


def source_name(source: Source, index: int | None = None) -> str:
    """Return the name of a source in messages and results.

    It is the path, or the kind and size, such as "array[512x512] uint8". With an ``index``, the
    image's position among many, a source without a path is named "array[512x512] uint8 #3".
    """
    if is_named(source):
        return str(os.fspath(source))
    return _kind_name(source) if index is None else f"{_kind_name(source)} #{index}"


def is_dataset(source: object) -> bool:
    """Return whether this is a pydicom Dataset, by its module: pydicom is not imported."""
    return any(c.__module__.partition(".")[0] == "pydicom" for c in type(source).__mro__)


def unknown_type(source: object) -> str:
    """Return the message of an ImageError for something that is no image."""
    return (
        f"it is of type {type(source).__name__}; expected a path, bytes, a file opened with 'rb', "
        "a PIL image, an array, or a list of them"
    )


class _HeldFile(io.BytesIO):
    """The content of a file object that its owner may close or refill, under the same name."""

    name: str | None = None

    @classmethod
    def of(cls, source: Any) -> Any:
        try:
            data = source.read()
        except (OSError, ValueError):  # reading it again raises the error in its place
            return source
        if not isinstance(data, bytes):
            return source
        held = cls(data)
        name = getattr(source, "filename", None) or getattr(source, "name", None)
        held.name = str(name) if isinstance(name, (str, Path)) else f"<{type(source).__name__}>"
        return held


def _kind_name(source: Any) -> str:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "")
        return str(name) if name else f"<PIL {source.mode} {source.width}x{source.height}>"
    if arrays.is_array(source):
        kind = "array" if isinstance(source, np.ndarray) else "tensor"
        shape = "x".join(str(n) for n in getattr(source, "shape", ()))
        return f"{kind}[{shape}] {str(getattr(source, 'dtype', '')).removeprefix('torch.')}"
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return str(name) if isinstance(name, (str, Path)) else f"<{type(source).__name__}>"


def _of_array(imgs: Any) -> Sources:
    """An array of paths or ``[N,H,W,C]`` is many; any other is one, also of a wrong shape."""
    if getattr(getattr(imgs, "dtype", None), "kind", "") in ("O", "U", "S"):
        return Sources(imgs.ravel().tolist(), False)
    shape: tuple[int, ...] = tuple(getattr(imgs, "shape", ()))
    if len(shape) != 4 or shape[3] not in (1, 3, 4):
        return Sources([imgs], True)  # reading it raises the error for a wrong shape
    try:
        return Sources(arrays.to_numpy(imgs), False)
    except ImageError as err:
        err.args = (f"{source_name(imgs)}: {err}",)
        raise


def _files_of(text: str) -> Sequence[Path] | None:
    """The image files of a folder or glob, sorted; None for any other path."""
    path = Path(text)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError:  # such as a name that is too long; reading it raises the error
        return None
    if is_folder:
        found = [p for p in sorted(path.rglob("*")) if _is_image_file(p, path)]
        if not found:
            raise ImageError(
                f"{path} holds no images; expected files such as .png, .jpg or .dcm in it"
            )
        return found
    if not glob.has_magic(text) or "://" in text or exists:
        return None
    found = [Path(p) for p in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207
    if not found:
        raise ImageError(f"{text} matches no file; check the pattern and the folder")
    return found


def _is_image_file(path: Path, root: Path) -> bool:
    hidden = any(name.startswith(".") for name in path.relative_to(root).parts)
    if hidden or not path.is_file() or path.name == "DICOMDIR":
        return False
    return path.suffix.lower() in IMAGE_SUFFIXES
