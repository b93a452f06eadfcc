"""Stored DICOM values to 256 grey levels: modality LUT, then VOI LUT or window.

An image of 16 bits has at most 65,536 different values. The formulas run on those in double
precision, and each pixel is one table look-up.

pydicom's ``apply_modality_lut`` and ``apply_voi_lut`` (3.0) are bit-equal on most golden files, but
not on all of them: they ignore the functional groups of enhanced multi-frame objects, and fail on
a modality LUT of 10 bits. Neither maps to 8 bits nor leaves padding values out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.errors import ImageError
from hybrid_rt.images import bit_depth

_Values = NDArray[np.float64]


def grey_levels(
    pixels: NDArray[Any], header: Any, frame: int, *, own_range: bool
) -> NDArray[np.uint8]:
    """Return stored values as uint8 ``[rows, columns]``, 0 for the darkest of MONOCHROME2.

    With ``own_range``, and for a file without VOI LUT and window, the frame's own smallest and
    largest value become 0 and 255; padding values are left out.
    Raises ImageError for a LUT or window that DICOM does not allow.
    """
    modality = _modality(header, frame)
    voi = None if own_range else _voi(header, frame, signed=bool(pixels.dtype.kind == "i"))
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2:
        return _by_table(pixels, header, modality, voi)
    if voi is None:
        kept = [modality(row[_not_padding(row, header)]) for row in pixels]
        voi = _stretch(np.array([f(row) for row in kept if row.size for f in (np.min, np.max)]))
    return np.stack([voi(modality(row)) for row in pixels])


def _by_table(
    pixels: NDArray[Any],
    header: Any,
    modality: Callable[[NDArray[Any]], _Values],
    voi: Callable[[_Values], NDArray[np.uint8]] | None,
) -> NDArray[np.uint8]:
    unsigned = pixels.astype(np.uint16, copy=False)  # negative values wrap, as the table does
    stored = np.arange(65536)
    if pixels.dtype.kind == "i":
        stored = np.where(stored < 32768, stored, stored - 65536)
    values = modality(stored)
    if voi is None:
        present = np.zeros(65536, bool)
        for row in unsigned:
            present[row] = True
        kept = present & _not_padding(stored, header)
        voi = _stretch(values[kept])
    return bit_depth.apply_table(unsigned, voi(values))


def _not_padding(stored: NDArray[Any], header: Any) -> NDArray[np.bool_]:
    """False at the values that fill the frame outside the image (PS3.3 C.7.5.1.1.2)."""
    first = header.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.ones(stored.shape, bool)
    last = header.get("PixelPaddingRangeLimit")
    low, high = sorted((first, last if isinstance(last, int) else first))
    return (stored < low) | (stored > high)


def _stretch(values: _Values) -> Callable[[_Values], NDArray[np.uint8]]:
    if values.size == 0:  # nothing but padding
        return lambda x: np.zeros(x.shape, np.uint8)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"its values run from {low} to {high}; expected finite numbers")
    return lambda x: bit_depth.linear(x, low, high)


def _modality(header: Any, frame: int) -> Callable[[NDArray[Any]], _Values]:
    """Stored values to the modality's units (PS3.3 C.11.1)."""
    if header.get("ModalityLUTSequence"):
        signed = header.get("PixelRepresentation") == 1
        entries, first, _ = _lut(header.ModalityLUTSequence[0], header, signed=signed)
        return lambda x: _look_up(x, entries, first)
    item = _functional_group(header, frame, "PixelValueTransformationSequence")
    slope = _first_number(item, "RescaleSlope", 1.0)
    intercept = _first_number(item, "RescaleIntercept", 0.0)
    return lambda x: x.astype(np.float64) * slope + intercept


def _voi(header: Any, frame: int, *, signed: bool) -> Callable[[_Values], NDArray[np.uint8]] | None:
    """The file's first VOI LUT, or else its first window; None if it has neither."""
    item = _functional_group(header, frame, "FrameVOILUTSequence")
    if item.get("VOILUTSequence"):
        entries, first, bits = _lut(item.VOILUTSequence[0], header, signed=signed)
        top = float(2**bits - 1)
        return lambda x: bit_depth.linear(_look_up(x, entries, first), 0, top)
    center = _first_number(item, "WindowCenter", None)
    width = _first_number(item, "WindowWidth", None)
    if center is None or width is None:
        return None
    function = str(item.get("VOILUTFunction") or "LINEAR").upper()
    least = 1 if function == "LINEAR" else 0
    if width < least or width == 0:
        raise ImageError(
            f"its window is {width:g} wide; expected {'1 or more' if least else 'more than 0'}: "
            "correct WindowWidth, or use a model with dicom_window='minmax'"
        )
    if function == "LINEAR":  # C.11.2.1.2.1
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    elif function == "LINEAR_EXACT":  # C.11.2.1.3.2
        low, high = center - width / 2, center + width / 2
    elif function == "SIGMOID":  # C.11.2.1.3.1
        return lambda x: bit_depth.linear(_sigmoid(4 * (x - center) / width), 0, 1)
    else:
        raise ImageError(
            f"its VOILUTFunction is {function}; expected LINEAR, LINEAR_EXACT or SIGMOID"
        )
    if low == high:
        return lambda x: np.where(x > low, np.uint8(255), np.uint8(0))
    return lambda x: bit_depth.linear(x, low, high)


def _sigmoid(x: _Values) -> _Values:
    values: _Values = (1 + np.tanh(x / 2)) / 2  # 1 / (1 + exp(-x)), which overflows
    return values


def _lut(item: Any, header: Any, *, signed: bool) -> tuple[NDArray[np.uint16], int, int]:
    """A LUT item's entries, the value of the first one and the bits an entry has."""
    descriptor = [int(n) for n in item.LUTDescriptor]
    count, first, bits = descriptor[0] & 0xFFFF or 65536, descriptor[1], descriptor[2]
    if not 8 <= bits <= 16:
        raise ImageError(f"its LUT has {bits} bits an entry; expected 8 to 16")
    if signed and first > 32767:
        first -= 65536
    data = item.LUTData
    if isinstance(data, bytes):
        little = header.file_meta.TransferSyntaxUID.is_little_endian
        dtype = (
            np.dtype(np.uint8) if len(data) < 2 * count else np.dtype("<u2" if little else ">u2")
        )
        entries = np.frombuffer(data, dtype).astype(np.uint16)
    else:
        entries = np.atleast_1d(np.asarray(data)).astype(np.uint16)
    if entries.size < count:
        raise ImageError(f"its LUT has {entries.size} entries; expected {count}")
    return entries[:count], first, bits


def _look_up(values: NDArray[Any], entries: NDArray[np.uint16], first: int) -> _Values:
    """Values below the table take its first entry, values above its last (C.11.1.1)."""
    index = np.clip(np.rint(values) - first, 0, entries.size - 1).astype(np.intp)
    found: _Values = entries[index].astype(np.float64)
    return found


def _functional_group(header: Any, frame: int, keyword: str) -> Any:
    """The item with an attribute: the frame's, the shared one, or the data set (C.7.6.16)."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for group in [*per_frame[frame : frame + 1], *shared[:1]]:
        items = group.get(keyword)
        if items:
            return items[0]
    return header


def _first_number(item: Any, keyword: str, default: Any) -> Any:
    """A decimal attribute's first value as float; ``default`` if it is absent or empty."""
    value = item.get(keyword)
    if value is None or isinstance(value, str):
        return default
    if not isinstance(value, (int, float)):  # several values, or none
        values = list(value)
        if not values or values[0] is None:
            return default
        value = values[0]
    number = float(value)
    if not np.isfinite(number):
        raise ImageError(f"its {keyword} is {number}; expected a finite number")
    return number
