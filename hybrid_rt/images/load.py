"""Anything a person has to the network's pixels: uint8 ``[height, width, 3]``, RGB.

Training, export and the runtime all call this file, so an image has the same pixels in each.
The steps, in order: decode, turn upright, window to 8 bits, compose alpha over black, crop,
convert to RGB, resize. docs/images.md has the rule for every kind of input.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_rt.errors import ImageError
from hybrid_rt.images import arrays
from hybrid_rt.images.encoded import KINDS, image_to_8_bits, read_encoded
from hybrid_rt.spec import Preprocess

__all__ = [
    "Source",
    "as_sources",
    "decode",
    "is_single",
    "load_batch",
    "load_pixels",
    "prepare",
    "source_name",
]

#: A path, encoded bytes, a binary file object, a PIL image, an array or tensor, or a pydicom
#: Dataset. Tensors and datasets have no type here: their libraries are not imported.
Source: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any] | Any"

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_HEAD = 132  # bytes that tell every kind of file apart; DICOM's mark is at 128


def load_pixels(
    source: Source,
    preprocess: Preprocess,
    *,
    float_range: tuple[float, float] | None = None,
    frame: int = 0,
) -> NDArray[np.uint8]:
    """One image as the network's input: uint8 ``[height, width, 3]``, RGB, C-contiguous, yours.

    ``float_range`` says which floating-point values are black and white, such as ``(0, 1)``; an
    image of floats without it is an error, as is any other image with it. ``frame`` picks one
    of several frames (DICOM, TIFF, animations), counted from 0.

    Raises ImageError, which names the source, for anything that cannot be read.
    """
    return prepare(decode(source, preprocess, float_range=float_range, frame=frame), preprocess)


def load_batch(
    sources: Source | Iterable[Source],
    preprocess: Preprocess,
    *,
    float_range: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Many images, or one, as uint8 ``[images, height, width, 3]``; see load_pixels.

    Raises ImageError for the first that cannot be read, with its name and place.
    """
    items = as_sources(sources)
    batch = np.empty((len(items), preprocess.height, preprocess.width, 3), np.uint8)
    for index, item in enumerate(items):
        try:
            batch[index] = load_pixels(item, preprocess, float_range=float_range)
        except ImageError as err:
            if len(items) > 1:
                err.args = (f"image {index} of {len(items)}: {err}",)
            raise
    return batch


def as_sources(sources: Source | Iterable[Source]) -> list[Source]:
    """One source or many, as a list. An array ``[images, H, W, C]`` has one entry each.

    Raises ImageError for something that is neither.
    """
    if arrays.is_array(sources):
        array = sources if isinstance(sources, np.ndarray) else _to_numpy(sources)
        if array.dtype.kind in "OUS":  # an array of paths
            return [item for entry in array.tolist() for item in as_sources(entry)]
        if array.ndim == 4 and array.shape[3] in (1, 3, 4):
            return list(array)
        return [array]
    if is_single(sources):
        return [sources]
    if isinstance(sources, Iterable) and not isinstance(sources, Mapping):
        return list(sources)
    raise ImageError(_unknown(sources))


def decode(
    source: Source,
    preprocess: Preprocess,
    *,
    float_range: tuple[float, float] | None = None,
    frame: int = 0,
) -> Image.Image:
    """The complete image before crop and resize: PIL mode L or RGB, upright, windowed to 8 bits.

    Raises ImageError as load_pixels does.
    """
    try:
        if frame < 0:
            raise ImageError(f"frame is {frame}; expected 0 or more")
        return _decode(source, preprocess, float_range, frame)
    except ImageError as err:
        err.args = (f"{source_name(source)}: {err}",)
        raise


def prepare(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Crop, convert to RGB and resize a decoded image: uint8 ``[height, width, 3]``.

    "stretch" returns bit for bit what ``image.convert("RGB").resize((width, height), filter)``
    returns, and so what torchvision's ``Resize((height, width))`` returns on a PIL image.
    """
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    if preprocess.crop == "breast":
        from hybrid_rt.images.breast_crop import breast_box

        left, top, right, bottom = breast_box(image)
        if (left, top, right, bottom) != (0, 0, *image.size):
            # not Image.crop, which warns about large images
            image = Image.fromarray(np.asarray(image)[top:bottom, left:right])
    pixels = np.asarray(_resize(image, preprocess))
    if pixels.ndim == 2:  # channels are filtered one by one: one of three equal ones is enough
        return np.repeat(pixels[:, :, None], 3, axis=2)
    return np.array(pixels)


def source_name(source: Source) -> str:
    """How messages call a source: its path, or its kind and size, such as
    "array[512x512] uint8".
    """
    if isinstance(source, (str, os.PathLike)):
        return str(os.fspath(source))
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


def _decode(
    source: Source,
    preprocess: Preprocess,
    float_range: tuple[float, float] | None,
    frame: int,
) -> Image.Image:
    if isinstance(source, (str, os.PathLike)):
        return _decode_path(source, preprocess, float_range, frame)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode_stream(io.BytesIO(source), preprocess, float_range, frame)
    if isinstance(source, Image.Image):
        return _decode_image(source, preprocess, float_range, frame)
    if arrays.is_array(source):
        if frame:
            raise ImageError(f"frame {frame} was asked for and an array has one; expected 0")
        image = arrays.array_image(arrays.to_numpy(source), preprocess, float_range)
        return image_to_8_bits(image, preprocess)
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise ImageError("it returns text; expected bytes: open the file with mode 'rb'")
        return _decode_stream(io.BytesIO(data), preprocess, float_range, frame)
    if _is_dataset(source):
        from hybrid_rt.images.dicom import read_dataset

        return read_dataset(source, preprocess, frame=frame)
    raise ImageError(_unknown(source))


def _decode_path(
    path: str | os.PathLike[str],
    preprocess: Preprocess,
    float_range: tuple[float, float] | None,
    frame: int,
) -> Image.Image:
    try:
        with Path(path).open("rb") as stream:
            whole = stream if stream.seekable() else io.BytesIO(stream.read())  # a pipe
            return _decode_stream(whole, preprocess, float_range, frame)
    except FileNotFoundError as err:
        raise ImageError("no such file: check the path") from err
    except IsADirectoryError as err:
        raise ImageError(f"it is a folder; expected a {KINDS} file: name the files in it") from err
    except (OSError, ValueError) as err:
        if isinstance(err, ImageError):
            raise
        raise ImageError(f"it cannot be opened ({err}); expected a readable file") from err


def _decode_stream(
    stream: BinaryIO,
    preprocess: Preprocess,
    float_range: tuple[float, float] | None,
    frame: int,
) -> Image.Image:
    head = stream.read(_HEAD)
    stream.seek(0)
    if not head:
        raise ImageError(f"it is empty (0 bytes); expected a {KINDS} file: fetch it again")
    if head[128:132] == b"DICM":
        from hybrid_rt.images.dicom import read_dicom

        if float_range is not None:
            raise ImageError("float_range was given for a DICOM file: leave float_range out")
        return read_dicom(stream, preprocess, frame=frame)
    return read_encoded(stream, head, preprocess, float_range=float_range, frame=frame)


def _decode_image(
    image: Image.Image,
    preprocess: Preprocess,
    float_range: tuple[float, float] | None,
    frame: int,
) -> Image.Image:
    try:
        name = getattr(image, "filename", "")
        if (
            image.format == "TIFF"
            and name
            and getattr(image, "tile", None)
            and Path(name).is_file()
        ):
            # Not loaded yet. Pillow would map an uncompressed file into memory by its name, and
            # shears it if it is stored on its side (seen with 13.0).
            return _decode_path(name, preprocess, float_range, frame or image.tell())
        return image_to_8_bits(image, preprocess, float_range=float_range, frame=frame)
    except ImageError:
        raise
    except Exception as err:  # a lazily opened file fails here, in a dozen types
        raise ImageError(
            f"PIL cannot load it ({str(err) or type(err).__name__}); expected a complete image"
        ) from err


def _resize(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    size = (preprocess.width, preprocess.height)
    resample = _FILTERS[preprocess.interpolation]
    width, height = image.size
    if preprocess.resize == "stretch":
        return image.resize(size, resample)
    if preprocess.resize == "fill":  # the largest centred region of the target's shape
        crop_w = min(width, max(1, round(height * size[0] / size[1])))
        crop_h = min(height, max(1, round(width * size[1] / size[0])))
        left, top = (width - crop_w) // 2, (height - crop_h) // 2
        return image.resize(size, resample, box=(left, top, left + crop_w, top + crop_h))
    scale = min(size[0] / width, size[1] / height)
    inner = (
        min(size[0], max(1, round(width * scale))),
        min(size[1], max(1, round(height * scale))),
    )
    padded = Image.new(image.mode, size)
    padded.paste(
        image.resize(inner, resample), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2)
    )
    return padded


def is_single(source: object) -> bool:
    """True for one source that is no array: a path, bytes, a file, a PIL image or a Dataset."""
    return (
        isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image))
        or hasattr(source, "read")
        or _is_dataset(source)
    )


def _is_dataset(source: object) -> bool:
    """True for a pydicom Dataset, told by its module: pydicom is not imported for it."""
    return any(c.__module__.partition(".")[0] == "pydicom" for c in type(source).__mro__)


def _to_numpy(source: Any) -> NDArray[Any]:
    try:
        return arrays.to_numpy(source)
    except ImageError as err:
        err.args = (f"{source_name(source)}: {err}",)
        raise


def _unknown(source: object) -> str:
    return (
        f"it is of type {type(source).__name__}; expected a path, bytes, a file opened with 'rb', "
        "a PIL image or an array"
    )
