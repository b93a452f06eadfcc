"""The exceptions of hybrid_rt, hybrid_train and hybrid_export: one tree, rooted in HybridError.

Every message has what happened, what was expected and what to do. Each class also inherits the
matching builtin, so ``except ValueError`` works.
"""

from __future__ import annotations


class HybridError(Exception):
    """Root of every error this project raises on purpose."""


class UsageError(HybridError, ValueError):
    """An argument or option that is invalid."""


class SpecError(HybridError, ValueError):
    """A model specification with a missing, unknown or impossible field."""


class ImageError(HybridError, ValueError):
    """An image that cannot be read or has the wrong shape, type or range."""


class MissingDecoderError(ImageError, ImportError):
    """An image whose decoder is not installed; the message names the package to install."""


class ModelFileError(HybridError, ValueError):
    """A model file or bundle that is missing, damaged or does not fit its spec."""


class DigestError(ModelFileError):
    """A file whose SHA-256 differs from the one in its bundle."""


class BackendError(HybridError, RuntimeError):
    """An inference library that failed or cannot run this file."""


class BackendMissingError(BackendError, ImportError):
    """An inference library that is not installed; the message names the extra to install."""


class DeviceError(BackendError):
    """A requested device that is missing or cannot run this file."""


class DataError(HybridError, ValueError):
    """A dataset that cannot be trained on: missing columns, one class only, unreadable images."""


class CheckpointError(HybridError, ValueError):
    """A checkpoint that is missing, damaged, unsafe to load or does not fit its spec."""


class TrainingError(HybridError, RuntimeError):
    """Training that cannot go on, such as a loss that is no longer finite."""


class ExportError(HybridError, RuntimeError):
    """An export that could not make a requested file."""


class ParityError(ExportError):
    """An exported file whose outputs differ from its PyTorch original."""
