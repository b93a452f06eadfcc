"""Read and write ONNX files: checked, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from hybrid_rt.errors import ExportError
from hybrid_rt.files import atomic_path


def save(model: Any, path: str | os.PathLike[str]) -> Path:
    """Check the model and write it, whole or not at all; returns the path."""
    path = Path(path)
    try:
        onnx.checker.check_model(model)
    except Exception as err:
        first = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise ExportError(f"{path.name} is not a valid ONNX model: {first}") from err
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return path


def load(path: str | os.PathLike[str]) -> Any:
    """Return the ``onnx.ModelProto`` of a file."""
    return onnx.load(str(path))


def set_metadata(model: Any, values: Mapping[str, str]) -> None:
    """Replace these keys of ``metadata_props``."""
    kept = {p.key: p.value for p in model.metadata_props if p.key not in values}
    del model.metadata_props[:]
    helper.set_model_props(model, {**kept, **values})
