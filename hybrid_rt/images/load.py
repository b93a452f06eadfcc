"""Convert any supported image source to model input: uint8 ``[height, width, 3]``, RGB.

Training, export and the runtime all call this module, so an image has the same pixels in each.
The steps, in order: decode, turn upright, window to 8 bits, compose alpha over black, crop,
convert to RGB, resize. docs/images.md has the rule for every kind of input.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_rt.errors import ImageError
from hybrid_rt.images import arrays
from hybrid_rt.images.encoded import KINDS, image_to_8_bits, read_encoded
from hybrid_rt.images.sources import Source, as_sources, is_dataset, source_name, unknown_type
from hybrid_rt.spec import Preprocess

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_HEAD = 132  # bytes that identify every kind of file; DICOM's mark is at 128


def load_pixels(
    source: Source,
    preprocess: Preprocess,
    *,
    float_range: tuple[float, float] | None = None,
    frame: int = 0,
) -> NDArray[np.uint8]:
    """Return one image as the network's input: uint8 ``[height, width, 3]``, RGB.

    Args:
        float_range: The floating-point values of black and white, such as ``(0, 1)``. Images of
            floats need it; with any other image it is an error.
        frame: One of several frames (DICOM, TIFF, animations), counted from 0.

    Returns:
        A C-contiguous array that the caller owns.

    Raises:
        ImageError: If the image cannot be read; the message names the source.
    """
    return prepare(decode(source, preprocess, float_range=float_range, frame=frame), preprocess)


def load_batch(
    imgs: Source | Iterable[Source],
    preprocess: Preprocess,
    *,
    float_range: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Return many images, or one, as uint8 ``[images, height, width, 3]``; see load_pixels.

    ``as_sources`` decides what is one image and what is many.

    Raises:
        ImageError: For the first image that cannot be read, with its name and position.
    """
    items = list(as_sources(imgs).items)
    batch = np.empty((len(items), preprocess.height, preprocess.width, 3), np.uint8)
    for index, item in enumerate(items):
        try:
            batch[index] = load_pixels(item, preprocess, float_range=float_range)
        except ImageError as err:
            if len(items) > 1:
                err.args = (f"image {index} of {len(items)}: {err}",)
            raise
    return batch


def decode(
    source: Source,
    preprocess: Preprocess,
    *,
    float_range: tuple[float, float] | None = None,
    frame: int = 0,
) -> Image.Image:
    """Return the complete image before crop and resize, upright and windowed to 8 bits.

    It is a PIL image of mode L or RGB. Raises ImageError as load_pixels does.
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

    "stretch" is bit-equal to ``image.convert("RGB").resize((width, height), filter)``, and so to
    torchvision's ``Resize((height, width))`` on a PIL image.
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
    if is_dataset(source):
        from hybrid_rt.images.dicom import read_dataset

        return read_dataset(source, preprocess, frame=frame)
    raise ImageError(unknown_type(source))


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
