"""Compiled OpenVINO models on disk, so that the next process neither reads nor compiles the ONNX.

There is one file for each model file, specification, batch size, setting, library version and
processor; its name is a digest of all of them. Files are written atomically. They hold native code
and data that OpenVINO trusts, so they are kept only in folders that belong to this user.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_rt.files import atomic_path, sha256_file, user_cache
from hybrid_rt.spec import ModelSpec

_SUFFIX = ".compiled"


class CompiledCache:
    """The compiled models of one file under one configuration."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._folder = folder
        self._facts = dict(facts)
        self._mapped: list[Any] = []  # memory that the compiled models may still read

    @classmethod
    def of(
        cls,
        path: Path,
        *,
        digest: str | None,
        spec: ModelSpec,
        config: Mapping[str, Any],
        core: Any,
    ) -> CompiledCache | None:
        """Return the cache of the model file at ``path``, or None if no folder can be used.

        ``digest`` is the file's SHA-256, if it is known.
        """
        folder = cache_folder(path)
        if folder is None:
            return None
        import openvino

        facts = {
            "file": digest or sha256_file(path),
            "spec": spec.to_json(),
            "config": {name: str(value) for name, value in config.items()},
            "openvino": openvino.__version__,
            "processor": str(core.get_property("CPU", "FULL_DEVICE_NAME")),
            "capabilities": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "machine": platform.machine(),
        }
        return cls(folder, facts)

    def load(self, core: Any, batch: int, config: Mapping[str, Any]) -> Any:
        """Return the compiled model for that batch size, or None if the cache has none."""
        path = self._path(batch)
        try:
            # Copy on write: OpenVINO requires writable memory, and the file must not change.
            data = np.memmap(path, np.uint8, mode="c")
        except (OSError, ValueError):
            return None
        import openvino

        try:
            tensor = openvino.Tensor(data, shared_memory=True)
            compiled = core.import_model(tensor, "CPU", config)
        except Exception:  # damaged, or of another build of the library: compile it again
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        self._mapped.append((data, tensor))
        return compiled

    def store(self, compiled: Any, batch: int) -> None:
        """Write a compiled model; if that fails, the next process compiles it again."""
        with contextlib.suppress(OSError, RuntimeError):
            blob = compiled.export_model()
            with atomic_path(self._path(batch)) as temporary:
                temporary.write_bytes(blob.getbuffer() if hasattr(blob, "getbuffer") else blob)

    def _path(self, batch: int) -> Path:
        text = json.dumps({**self._facts, "batch": batch}, sort_keys=True)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{_SUFFIX}"


def cache_folder(path: Path) -> Path | None:
    """Return the folder for compiled models: beside the file, else in the user's cache, or None."""
    for folder in (path.parent / ".openvino-cache", user_cache() / "openvino"):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Compiled models are loaded unchecked, so the folder has to be this user's own.
            if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
                return folder
    return None
