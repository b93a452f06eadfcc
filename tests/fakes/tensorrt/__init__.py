"""TensorRT modules without TensorRT: the classes of a real version, with a toy engine behind them.

``fake_tensorrt("8.6", cuda)`` is a module object; the version is a key of ``API``. Tests read what
a build or a session did from the module's ``built`` and ``engines``, never from its objects.
"""

from .api import API, VERSIONS, checked_class
from .engine import expected, plan_bytes
from .module import fake_tensorrt
from .parser import parse_onnx

__all__ = [
    "API",
    "VERSIONS",
    "checked_class",
    "expected",
    "fake_tensorrt",
    "parse_onnx",
    "plan_bytes",
]
