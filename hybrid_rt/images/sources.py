"""Tell one image from many, and find the image files of paths, folders and globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from hybrid_rt.errors import ImageError
from hybrid_rt.images.arrays import is_array
from hybrid_rt.images.load import is_single

#: Files of a folder that are taken for images; files without a suffix may be DICOM.
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".dcm", ".dicom", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp", "")
)


def is_one(source: Any) -> bool:
    """Whether ``source`` is one image: a path, bytes, file, PIL image, pydicom Dataset or
    array ``[H,W]`` or ``[H,W,C]``.

    Lists, other iterables and arrays ``[N,H,W,C]`` are many.
    """
    if isinstance(source, Image.Image) or not is_array(source):
        return is_single(source)
    kind = getattr(getattr(source, "dtype", None), "kind", "")
    return len(getattr(source, "shape", ())) != 4 and kind not in "OUS"  # OUS: an array of paths


def is_named(source: Any) -> bool:
    """Whether an image has a name of its own: it is a path."""
    return isinstance(source, (str, os.PathLike))


def expand(arguments: Iterable[str]) -> list[Path]:
    """Image files for paths, folders and globs, in the order given; folders sorted, recursive.

    A path that does not exist is kept, so that reading it raises the error. Raises ImageError for
    a folder or a glob without images.
    """
    paths: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = [p for p in sorted(path.rglob("*")) if _is_image_file(p, path)]
            if not found:
                raise ImageError(
                    f"{path} holds no images; expected files such as .png, .jpg or .dcm in it"
                )
            paths += found
        elif path.exists() or not glob.has_magic(argument):
            paths.append(path)
        else:
            found = [Path(p) for p in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207
            if not found:
                raise ImageError(f"{argument} matches no file; check the pattern and the folder")
            paths += found
    return paths


def _is_image_file(path: Path, root: Path) -> bool:
    hidden = any(name.startswith(".") for name in path.relative_to(root).parts)
    if hidden or not path.is_file() or path.name == "DICOMDIR":
        return False
    return path.suffix.lower() in IMAGE_SUFFIXES
