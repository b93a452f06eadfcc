"""Convert arrays and tensors to images: NumPy, and torch, CuPy or JAX without importing them.

An array has no description of its content, so the rules are strict: rows first, channels last,
uint8 or uint16; floating point only with a given range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_rt.errors import ImageError
from hybrid_rt.images import bit_depth
from hybrid_rt.spec import Preprocess

_CPU_DEVICES = (1, 3)  # DLPack's kDLCPU and kDLCUDAHost (pinned host memory)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def is_array(source: object) -> bool:
    """Return whether this is a NumPy array or has DLPack or a CUDA array interface."""
    return isinstance(source, np.ndarray) or any(
        hasattr(source, name)
        for name in ("__dlpack__", "__cuda_array_interface__", "__array_interface__")
    )


def is_input(source: object, preprocess: Preprocess, dimensions: int) -> bool:
    """Return whether this is a model's input, uint8 ``[H,W,3]`` (3) or ``[N,H,W,3]`` (4)."""
    return (
        isinstance(source, np.ndarray)
        and source.dtype == np.uint8
        and source.ndim == dimensions
        and bool(source.shape[-3:] == (preprocess.height, preprocess.width, 3))
    )


def to_numpy(source: Any) -> NDArray[Any]:
    """Return the array's values in host memory, without a copy if they are there already.

    Tensors on a GPU are copied by their own library (``.cpu()`` or ``.get()``).
    Raises ImageError if the library cannot hand its values over.
    """
    if isinstance(source, np.ndarray):
        return source
    try:
        if hasattr(source, "detach"):  # torch refuses DLPack while a gradient is recorded
            source = source.detach()
        if not _on_host(source):
            source = source.get() if hasattr(source, "get") else source.cpu()
        if isinstance(source, np.ndarray):
            return source
        return np.from_dlpack(source) if hasattr(source, "__dlpack__") else np.asarray(source)
    except Exception as err:  # whatever another library raises while handing over
        raise ImageError(
            f"its values could not be read ({type(err).__name__}: {err}); expected a uint8 or "
            "uint16 array: convert it with numpy.asarray first"
        ) from err


def _on_host(source: Any) -> bool:
    if hasattr(source, "__dlpack_device__"):
        return int(source.__dlpack_device__()[0]) in _CPU_DEVICES
    return not hasattr(source, "__cuda_array_interface__")


def array_image(
    array: NDArray[Any], preprocess: Preprocess, float_range: tuple[float, float] | None
) -> Image.Image:
    """Return an ``[H, W]`` or ``[H, W, 1|3|4]`` array as an 8-bit PIL image: L, RGB or RGBA.

    Raises ImageError for other shapes and types; the message says how to convert.
    """
    check_shape(array)
    values = _to_8_bits(array, preprocess, float_range)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    mode = _MODES[1 if values.ndim == 2 else values.shape[2]]
    height, width = values.shape[:2]
    # Image.fromarray would reject or misread some strides on old releases; a plain copy is safe.
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(values).tobytes())


def check_shape(array: NDArray[Any]) -> None:
    """Raise ImageError unless the array is one image, rows first and channels last."""
    shape = array.shape
    want = "expected [height, width] or [height, width, 1, 3 or 4]"
    if array.ndim == 3 and shape[2] not in _MODES and shape[0] in _MODES:
        raise ImageError(f"channels come first; {want}: transpose it with x.transpose(1, 2, 0)")
    if array.ndim == 4 and shape[3] not in _MODES and shape[1] in _MODES:
        raise ImageError(
            "channels come second; expected [images, height, width, 1, 3 or 4]: transpose it "
            "with x.transpose(0, 2, 3, 1)"
        )
    if array.ndim == 4 and shape[3] in _MODES:
        raise ImageError(f"it holds {shape[0]} images; {want}: pass them one by one, or as many")
    if array.ndim == 3 and shape[2] not in _MODES:
        raise ImageError(f"its last axis has {shape[2]} entries; {want}: add a channel axis last")
    if array.ndim not in (2, 3):
        raise ImageError(f"it has {array.ndim} axes; {want}")
    if 0 in shape:
        raise ImageError(f"it has no pixels; {want}, none of them 0")


def _to_8_bits(
    array: NDArray[Any], preprocess: Preprocess, float_range: tuple[float, float] | None
) -> NDArray[np.uint8]:
    if float_range is not None and array.dtype.kind != "f":
        raise ImageError(
            f"float_range was given for {array.dtype} values; expected floating point: leave "
            "float_range out"
        )
    if array.dtype == np.uint8:
        return array
    own_range = preprocess.high_bit_depth == "minmax"
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        values = array.astype(np.uint16, copy=False)  # to the machine's byte order
        return bit_depth.own_range(values) if own_range else bit_depth.full_range(values, 16)
    if array.dtype.kind == "f":
        if float_range is not None:
            return bit_depth.given_range(array, float_range)
        if own_range:
            return bit_depth.own_range(array)
        raise ImageError(
            "floating point values have no known white; expected uint8 or uint16: "
            "pass float_range=(0, 1) if they run from 0 to 1, or convert with "
            "(x * 255).round().astype('uint8')"
        )
    raise ImageError(f"its values are {array.dtype}; expected uint8 or uint16: convert them first")
