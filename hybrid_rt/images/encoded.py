"""Convert image files to 8-bit images with Pillow: JPEG, PNG, TIFF, WebP and BMP.

The decoder is chosen from the file's first bytes, never from its name. The decoder classes are
called directly: ``Image.open`` would try every format Pillow knows and warn about large images
through Python's warning filters, which threads share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from hybrid_rt.errors import ImageError
from hybrid_rt.images import bit_depth
from hybrid_rt.spec import Preprocess

#: Images with more pixels are refused before they are decoded. Pillow's own hard limit.
MAX_PIXELS = 178_956_970

KINDS = "JPEG, PNG, TIFF, WebP, BMP or DICOM"

_ORIENTATION = 0x0112  # EXIF and TIFF tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF 6.0 tags
_SIGNED = 2  # TIFF SampleFormat

_ALPHA = {"LA": "L", "La": "L", "RGBA": "RGB", "RGBa": "RGB", "PA": "RGB"}


def read_encoded(
    stream: BinaryIO,
    head: bytes,
    preprocess: Preprocess,
    *,
    float_range: tuple[float, float] | None = None,
    frame: int = 0,
) -> Image.Image:
    """Decode one image file; ``head`` is its first 16 bytes or more, ``stream`` is at byte 0.

    Returns mode L or RGB, upright, 8 bits, alpha composed over black.
    Raises ImageError for anything that is not one complete image of a known kind.
    """
    opener = _opener(head)
    try:
        with opener(stream) as image:
            return image_to_8_bits(image, preprocess, float_range=float_range, frame=frame)
    except ImageError:
        raise
    except MemoryError as err:
        raise ImageError("not enough memory to decode it") from err
    except Exception as err:  # Pillow raises a dozen types on damaged files
        raise ImageError(
            f"it is damaged or cut off ({str(err) or type(err).__name__}); expected a complete "
            f"{KINDS} file: fetch or export it again"
        ) from err


def image_to_8_bits(
    image: Image.Image,
    preprocess: Preprocess,
    *,
    float_range: tuple[float, float] | None = None,
    frame: int = 0,
) -> Image.Image:
    """Return an opened PIL image as mode L or RGB: upright, 8 bits, alpha over black."""
    given = image
    check_size(*image.size)
    if frame:
        _seek(image, frame)
        check_size(*image.size)  # each page of a TIFF file has its own
    high_byte_only = _is_reduced_colour(image)
    inverted = image.mode[0] in "IF" and _tag(image, _PHOTOMETRIC, 1) == 0
    image.load()
    upright = _orientation(image)
    if image.mode[0] in "IF":
        image = _wide_to_8_bits(image, preprocess, float_range, inverted)
    elif float_range is not None:
        raise ImageError(
            f"float_range was given for an image of mode {image.mode}; expected floating point: "
            "leave float_range out"
        )
    elif high_byte_only and preprocess.high_bit_depth == "minmax":
        image = _stretch_colour(image)
    if upright is not None:
        image = image.transpose(upright)
    image = over_black(image)
    if image is given:
        image = image.copy()
    image.info = {}  # it is upright now: its EXIF data must not turn it once more
    return image


def check_size(width: int, height: int) -> None:
    """Raise ImageError for an image without pixels or with more than MAX_PIXELS."""
    if width < 1 or height < 1:
        raise ImageError(f"it is {width}x{height} pixels; expected at least one pixel")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"it is {width}x{height} = {width * height:,} pixels; expected at most "
            f"{MAX_PIXELS:,}: scale it down or cut it into tiles first"
        )


def over_black(image: Image.Image) -> Image.Image:
    """Compose alpha over black, ``round(colour * alpha / 255)``; the result is L or RGB."""
    keyed = "transparency" in image.info
    if image.mode in ("L", "RGB") and not keyed:
        return image
    if keyed and image.mode in ("1", "L", "P", "RGB"):
        image = image.convert("RGBA" if image.mode in ("P", "RGB") else "LA")
    if image.mode == "PA":
        image = image.convert("RGBA")
    opaque = _ALPHA.get(image.mode)
    if opaque is None:
        try:
            return image.convert("L" if image.mode == "1" else "RGB")
        except ValueError as err:
            raise ImageError(
                f"its colours are {image.mode}, which Pillow cannot convert; expected greyscale, "
                "RGB, CMYK or a palette: convert it to RGB first"
            ) from err
    if image.mode.endswith("a"):  # colour already multiplied by alpha
        bands = image.split()[:-1]
        return Image.merge(opaque, bands) if len(bands) > 1 else bands[0]
    alpha = image.getchannel("A")
    colour = image.convert(opaque)
    colour.info.pop("transparency", None)
    black = Image.new(opaque, image.size)
    black.paste(colour, mask=alpha)
    return black


def _opener(head: bytes) -> Callable[[BinaryIO], Any]:
    """The Pillow class for these first bytes."""
    if head.startswith(b"\xff\xd8\xff"):
        from PIL.JpegImagePlugin import JpegImageFile

        return JpegImageFile
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        from PIL.PngImagePlugin import PngImageFile

        return PngImageFile
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        from PIL.TiffImagePlugin import TiffImageFile

        return TiffImageFile
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        from PIL import features
        from PIL.WebPImagePlugin import WebPImageFile

        if not features.check("webp"):
            raise ImageError("this Pillow was built without WebP: install Pillow's own wheel")
        return WebPImageFile
    if head.startswith(b"BM"):
        from PIL.BmpImagePlugin import BmpImageFile

        return BmpImageFile
    raise ImageError(
        f"it begins with {head[:8]!r}, which is no image this reads; expected {KINDS}: "
        "convert it to PNG"
    )


def _seek(image: Image.Image, frame: int) -> None:
    count = getattr(image, "n_frames", 1)
    if frame >= count:
        raise ImageError(
            f"frame {frame} was asked for and it has {count}; expected 0 to {count - 1}"
        )
    image.seek(frame)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """The transposition that turns the image upright; None without readable EXIF data."""
    try:
        return _TRANSPOSE.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data does not spoil the pixels
        return None


def _tag(image: Image.Image, number: int, default: int) -> int:
    """A TIFF tag's first value; ``default`` for other kinds of file."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _is_reduced_colour(image: Image.Image) -> bool:
    """True for colour of 16 bits a channel, of which Pillow keeps the high byte."""
    if image.mode not in ("RGB", "RGBA", "CMYK"):
        return False
    for tile in getattr(image, "tile", []):
        args = tile[3]
        rawmode = args[0] if isinstance(args, tuple) else args
        if isinstance(rawmode, str) and ";16" in rawmode:
            return True
    return False


def _wide_to_8_bits(
    image: Image.Image,
    preprocess: Preprocess,
    float_range: tuple[float, float] | None,
    inverted: bool,
) -> Image.Image:
    """Greyscale of more than 8 bits or floating point (modes I, I;16 and F) to L."""
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    own_range = preprocess.high_bit_depth == "minmax"
    if image.mode == "F":
        if float_range is not None:
            grey = bit_depth.given_range(values, float_range)
        elif own_range:
            grey = bit_depth.own_range(values)
        else:
            raise ImageError(
                "floating point values have no known white; expected an integer "
                "image: pass float_range=(0, 1) if they run from 0 to 1"
            )
    else:
        if float_range is not None:
            raise ImageError("float_range was given for integers: leave float_range out")
        bits, signed = _integer_type(image)
        if bits <= 16 and not signed:
            values = values.astype(np.uint16, copy=False)
        elif not signed:
            values = values.view(np.uint32)  # Pillow keeps unsigned 32-bit values in int32
        grey = (
            bit_depth.own_range(values)
            if own_range
            else bit_depth.full_range(values, bits, signed=signed)
        )
    if inverted:
        grey = 255 - grey
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(0), grey)
    return Image.fromarray(grey)


def _integer_type(image: Image.Image) -> tuple[int, bool]:
    """Bits a sample and whether they are signed."""
    if image.mode.startswith("I;16"):
        return _tag(image, _BITS_PER_SAMPLE, 16), False
    if image.format == "PNG":  # Pillow before 11.3 opens 16-bit PNG as mode I
        return 16, False
    if hasattr(image, "tag_v2"):
        return _tag(image, _BITS_PER_SAMPLE, 32), _tag(image, _SAMPLE_FORMAT, 1) == _SIGNED
    raise ImageError(
        "PIL mode I has no known white; expected L, RGB or I;16: pass "
        "numpy.asarray(image).astype('uint16') if the values are 16-bit"
    )


def _stretch_colour(image: Image.Image) -> Image.Image:
    """Own range of all colour channels together; alpha stays."""
    values = np.array(image)
    channels = 3 if values.shape[2] == 4 and image.mode != "CMYK" else values.shape[2]
    values[:, :, :channels] = bit_depth.own_range(values[:, :, :channels])
    return Image.frombytes(image.mode, image.size, values.tobytes())
