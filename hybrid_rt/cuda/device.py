"""The ``device`` argument ("auto", "cpu", "cuda", "cuda:N") and the GPU that it names."""

from __future__ import annotations

from hybrid_rt.cuda.driver import CudaDevice, cuda_devices
from hybrid_rt.errors import DeviceError, UsageError


def parse_device(text: str) -> tuple[str, int]:
    """Return kind and index: "cpu" -> ("cpu", 0), "cuda:1" -> ("cuda", 1), "auto" -> ("auto", 0).

    Raises:
        UsageError: The text has another form.
        DeviceError: The machine has no such GPU.
    """
    kind, index = _split(text, "'auto', 'cpu', 'cuda' or 'cuda:0'")
    if kind == "cuda":
        try:
            _find(text, index)
        except DeviceError as err:
            raise DeviceError(
                f"device {text!r} was asked for: {err}; or use device='cpu' with the bundle's "
                "model.onnx"
            ) from err
    return kind, index


def cuda_device(text: str = "cuda") -> CudaDevice:
    """Return the GPU called "cuda:N"; "cuda" and "auto" are the first one.

    Raises:
        UsageError: The text names no GPU; "cpu" does not either.
        DeviceError: The machine has no such GPU.
    """
    expected = "auto, cuda or cuda:N for a TensorRT plan"
    kind, index = _split(text, expected)
    if kind == "cpu":
        raise UsageError(f"device is {text!r}; expected {expected}")
    return _find(text, index)


def _split(text: str, expected: str) -> tuple[str, int]:
    kind, colon, number = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind in ("auto", "cpu") and not colon:
        return kind, 0
    if kind != "cuda" or (colon and not (number.isascii() and number.isdigit())):
        raise UsageError(f"device is {text!r}; expected {expected}")
    return kind, int(number or 0)


def _find(text: str, index: int) -> CudaDevice:
    found = cuda_devices()
    if index >= len(found):
        raise DeviceError(
            f"device is {text!r}; this machine has {', '.join(str(d) for d in found)}"
        )
    return found[index]
