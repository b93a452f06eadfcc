"""Run hybrid image classifiers without PyTorch.

from hybrid_rt import HybridEngine

engine = HybridEngine("model.onnx")
print(engine.predict("scan.dcm").label)
"""

from importlib.metadata import PackageNotFoundError, version

from hybrid_rt.bundle.manifest import Bundle
from hybrid_rt.engine import HybridEngine
from hybrid_rt.errors import (
    BackendError,
    BackendMissingError,
    DeviceError,
    DigestError,
    HybridError,
    ImageError,
    ModelFileError,
    SpecError,
    UsageError,
)
from hybrid_rt.results.explanation import Explanation
from hybrid_rt.results.prediction import Prediction, PredictionError
from hybrid_rt.results.predictions import Predictions
from hybrid_rt.selftest import SelfTest
from hybrid_rt.spec import ModelSpec
from hybrid_rt.uncertainty.decision import Decision

try:
    __version__ = version("hybrid-rt")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "BackendError",
    "BackendMissingError",
    "Bundle",
    "Decision",
    "DeviceError",
    "DigestError",
    "Explanation",
    "HybridEngine",
    "HybridError",
    "ImageError",
    "ModelFileError",
    "ModelSpec",
    "Prediction",
    "PredictionError",
    "Predictions",
    "SelfTest",
    "SpecError",
    "UsageError",
    "__version__",
]
