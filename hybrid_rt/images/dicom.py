"""Convert DICOM files to 8-bit images: modality LUT, VOI LUT or window, inversion, 8 bits.

The order and the formulas are those of DICOM PS3.3: C.11.1 (modality LUT), C.11.2 (VOI LUT and
window) and C.7.6.3.1.2 (MONOCHROME1). pydicom parses the file and decodes the pixel data; it is
imported when the first DICOM file is read. Overlays and presentation states are not applied.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_rt.errors import ImageError, MissingDecoderError
from hybrid_rt.images import bit_depth
from hybrid_rt.images.dicom_lut import grey_levels
from hybrid_rt.images.encoded import MAX_PIXELS, check_size
from hybrid_rt.spec import Preprocess

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_EXPLICIT = b"1.2.840.10008.1.2.1\0\0\0"  # as long as _DEFLATED
_MAX_INFLATED = 2 * MAX_PIXELS  # bytes
# Value representations with a length of 4 bytes (PS3.5, 7.1.2)
_LONG_VALUES = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
_END_OF_SEQUENCE = b"\xfe\xff\xdd\xe0\0\0\0\0"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_CHUNK = 1 << 20


def read_dicom(stream: BinaryIO, preprocess: Preprocess, *, frame: int = 0) -> Image.Image:
    """Return one frame of a DICOM file (with its preamble) as mode L or RGB.

    Only that frame is decoded. Raises ImageError for a damaged, cut off or unsupported file, and
    MissingDecoderError, an ImageError too, if a package has to be installed.
    """
    dcmread = _pydicom().dcmread
    try:
        stream = _inflated(stream)
        header = dcmread(stream, stop_before_pixels=True)
        _check_pixel_data(stream)
        _check_header(header, frame)
        stream.seek(0)
        return _render(stream, header, preprocess, frame)
    except ImageError:
        raise
    except MemoryError as err:
        raise ImageError("not enough memory to decode it") from err
    except Exception as err:  # pydicom raises a dozen types on damaged files
        raise _damaged(err) from err


def read_dataset(dataset: Any, preprocess: Preprocess, *, frame: int = 0) -> Image.Image:
    """Return one frame of a pydicom Dataset that holds pixel data; see read_dicom."""
    try:
        _check_header(dataset, frame)
        return _render(dataset, dataset, preprocess, frame)
    except ImageError:
        raise
    except Exception as err:
        raise _damaged(err) from err


def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as err:
        raise MissingDecoderError(
            "reading DICOM needs the package pydicom: pip install 'hybrid-rt[dicom]'"
        ) from err
    return pydicom


def _damaged(err: Exception) -> ImageError:
    return ImageError(
        f"its DICOM content is damaged or incomplete ({str(err) or type(err).__name__}); expected "
        "a complete DICOM image: fetch or export it again"
    )


def _inflated(stream: BinaryIO) -> BinaryIO:
    """The stream itself, or the inflated file of the deflated transfer syntax.

    pydicom would inflate without a limit, and could not read one frame of the result.
    """
    stream.seek(132)
    meta = _file_meta(stream)
    if _DEFLATED not in meta:
        stream.seek(0)
        return stream
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(stream.read(), _MAX_INFLATED)
    if inflater.unconsumed_tail:
        raise ImageError(f"it inflates to more than {_MAX_INFLATED:,} bytes; expected less")
    if not inflater.eof:
        raise ImageError("it is cut off; expected a complete DICOM file: fetch it again")
    return io.BytesIO(bytes(128) + b"DICM" + meta.replace(_DEFLATED, _EXPLICIT) + data)


def _file_meta(stream: BinaryIO) -> bytes:
    """All elements of group 2, which are in Explicit VR Little Endian (PS3.10, 7.1).

    They are walked as in pydicom, whatever the group length is. The stream is left behind them.
    """
    found = b""
    while True:
        element = stream.read(8)
        if len(element) < 8 or element[:2] != b"\x02\0":
            stream.seek(-len(element), os.SEEK_CUR)
            return found
        if element[4:6] in _LONG_VALUES:
            element += stream.read(4)
            length = int.from_bytes(element[8:12], "little")
        else:
            length = int.from_bytes(element[6:8], "little")
        found += element + stream.read(min(length, _CHUNK))
        if len(found) > _CHUNK or length > _CHUNK:
            raise ImageError(f"its file meta information has more than {_CHUNK:,} bytes")


def _check_pixel_data(stream: BinaryIO) -> None:
    """Raise ImageError unless the pixel data element, which is next, is there to its end.

    pydicom only warns about a file that was cut off.
    """
    start = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(start)
    element = stream.read(12)
    if len(element) < 12:
        raise ImageError(
            "it has no pixel data; expected a DICOM image: reports and presentation states hold "
            "none, and a file that was cut off has to be fetched again"
        )
    explicit = element[4:6].isalpha()
    big = element[:2] == b"\x7f\xe0"
    length = struct.unpack(">L" if big else "<L", element[8:12] if explicit else element[4:8])[0]
    if length == _UNDEFINED_LENGTH:
        whole = _ends_somewhere(stream, start, size)
    else:
        whole = start + (12 if explicit else 8) + length <= size
    if not whole:
        raise ImageError(
            f"it is cut off after {size:,} bytes; expected all of its pixel data: fetch it again"
        )


def _ends_somewhere(stream: BinaryIO, start: int, size: int) -> bool:
    """True if the end mark of encapsulated pixel data follows; searched from the file's end."""
    stop = size
    while stop > start:
        begin = max(start, stop - _CHUNK)
        stream.seek(begin)
        if _END_OF_SEQUENCE in stream.read(stop - begin + len(_END_OF_SEQUENCE)):
            return True
        stop = begin
    return False


def _check_header(header: Any, frame: int) -> None:
    """Refuse what cannot be decoded, before any of it is."""
    for keyword in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation"):
        if header.get(keyword) is None:
            raise ImageError(f"it has no {keyword}; expected a DICOM image: export it again")
    check_size(int(header.Columns), int(header.Rows))
    count = int(header.get("NumberOfFrames") or 1)
    if frame >= count:
        raise ImageError(
            f"frame {frame} was asked for and it has {count}; expected 0 to {count - 1}"
        )
    samples = int(header.get("SamplesPerPixel") or 1)
    if samples not in (1, 3):
        raise ImageError(f"it has {samples} samples a pixel; expected 1 or 3")
    _check_decoder(header)


def _check_decoder(header: Any) -> None:
    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
    if not syntax:
        raise ImageError("it has no TransferSyntaxUID; expected a DICOM file: export it again")
    try:
        decoder = _pydicom().pixels.get_decoder(syntax)
    except NotImplementedError as err:
        raise ImageError(
            f"its transfer syntax is {syntax.name}, which pydicom cannot decode: export it as "
            "Explicit VR Little Endian"
        ) from err
    if not decoder.is_available:
        raise MissingDecoderError(
            f"its pixel data is {syntax.name} and no installed package decodes that: "
            f"pip install {_packages(syntax.name)}"
        )


def _packages(syntax_name: str) -> str:
    """What to install for a compressed transfer syntax."""
    if "2000" in syntax_name:  # JPEG 2000 and High-Throughput JPEG 2000
        return "pylibjpeg pylibjpeg-openjpeg"
    return "pylibjpeg pylibjpeg-libjpeg"


def _render(source: Any, header: Any, preprocess: Preprocess, frame: int) -> Image.Image:
    pixels = _pixels(source, header, frame)
    photometric = str(header.PhotometricInterpretation).upper()
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        grey = grey_levels(pixels, header, frame, own_range=preprocess.dicom_window == "minmax")
        return Image.fromarray(grey if photometric == "MONOCHROME2" else 255 - grey)
    if photometric == "PALETTE COLOR":
        pixels = _pydicom().pixels.apply_color_lut(pixels, header)[:, :, :3]
        bits = 8 * pixels.dtype.itemsize
    elif photometric == "RGB" or photometric.startswith(("YBR_FULL", "YBR_ICT", "YBR_RCT")):
        bits = int(header.get("BitsStored") or 8 * pixels.dtype.itemsize)
    else:
        raise ImageError(
            f"its PhotometricInterpretation is {photometric}; expected MONOCHROME1, MONOCHROME2, "
            "PALETTE COLOR, RGB or YBR_FULL: export it as RGB"
        )
    colour = pixels if pixels.dtype == np.uint8 else bit_depth.full_range(pixels, bits)
    return Image.fromarray(np.ascontiguousarray(colour))


def _pixels(source: Any, header: Any, frame: int) -> NDArray[Any]:
    """The stored values of one frame: ``[rows, columns]``, or ``[rows, columns, 3]`` in RGB."""
    try:
        pixels: NDArray[Any] = _pydicom().pixels.pixel_array(source, index=frame)
    except RuntimeError as err:  # every installed decoder failed
        name = header.file_meta.TransferSyntaxUID.name
        raise ImageError(
            f"its pixel data, {name}, cannot be decoded ({err}): it is damaged, or another decoder "
            f"may read it: pip install {_packages(name)}"
        ) from err
    if pixels.shape[:2] != (header.Rows, header.Columns):
        raise ImageError(
            f"its pixel data has shape {pixels.shape}; expected {header.Rows} rows and "
            f"{header.Columns} columns"
        )
    return pixels
