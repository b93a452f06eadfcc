"""The ``device`` argument: "auto", "cpu" or "cuda:N", held against what the machine has."""

from __future__ import annotations

from functools import lru_cache

from hybrid_rt.cuda_driver import cuda_device, cuda_devices
from hybrid_rt.errors import DeviceError, UsageError


@lru_cache(maxsize=1)
def cuda_device_count() -> int:
    """Number of NVIDIA GPUs this process can use; 0 without a driver."""
    try:
        return len(cuda_devices())
    except DeviceError:
        return 0


def parse_device(text: str) -> tuple[str, int]:
    """``"cpu"`` -> ("cpu", 0), ``"cuda:1"`` -> ("cuda", 1), ``"auto"`` -> ("auto", 0).

    Raises UsageError for other text and DeviceError for a GPU that is not there.
    """
    kind, colon, number = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind in ("auto", "cpu") and not colon:
        return kind, 0
    if kind != "cuda" or (colon and not (number.isascii() and number.isdigit())):
        raise UsageError(f"device is {text!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:0'")
    try:
        return kind, cuda_device(text).index
    except DeviceError as err:
        raise DeviceError(
            f"device {text!r} was asked for: {err}; or use device='cpu' with the bundle's "
            "model.onnx"
        ) from err
