"""Train ViT + CNN hybrid image classifiers with PyTorch.

The public names are imported when they are first used, so that importing this package, and
``hybrid-train --help``, load no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hybrid_rt.cpu import prepare

if TYPE_CHECKING:
    from hybrid_train.config import RunConfig
    from hybrid_train.model.checkpoint import load_checkpoint
    from hybrid_train.run import fit

__all__ = ["RunConfig", "fit", "load_checkpoint"]

prepare("torch")  # before any module here imports it

_MODULES = {
    "RunConfig": "hybrid_train.config",
    "fit": "hybrid_train.run",
    "load_checkpoint": "hybrid_train.model.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
