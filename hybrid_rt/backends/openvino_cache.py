"""Compiled OpenVINO models on disk, so that the next process neither reads nor compiles the ONNX.

One file for each model file, specification, batch size, setting, library version and processor;
whatever differs makes another name. Files are written whole or not at all. They hold native code
and data that OpenVINO trusts, so they lie only in folders that belong to this user.
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

from hybrid_rt.files import atomic_path, sha256_file
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
        """For the model file at ``path``, whose SHA-256 may be known; None where no folder will
        do."""
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
        """The compiled model for that batch size, or None where it has to be compiled."""
        path = self._path(batch)
        try:
            # Copy on write: OpenVINO wants writable memory, and nothing goes back to the disk.
            data = np.memmap(path, np.uint8, mode="c")
        except (OSError, ValueError):
            return None
        import openvino

        try:
            tensor = openvino.Tensor(data, shared_memory=True)
            compiled = core.import_model(tensor, "CPU", config)
        except Exception:  # of another build of the library, or damaged: compiled again
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        self._mapped.append((data, tensor))
        return compiled

    def store(self, compiled: Any, batch: int) -> None:
        """Keep a compiled model; where that cannot be done, the next process compiles again."""
        with contextlib.suppress(OSError, RuntimeError):
            blob = compiled.export_model()
            with atomic_path(self._path(batch)) as temporary:
                temporary.write_bytes(blob.getbuffer() if hasattr(blob, "getbuffer") else blob)

    def _path(self, batch: int) -> Path:
        text = json.dumps({**self._facts, "batch": batch}, sort_keys=True)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{_SUFFIX}"


def cache_folder(path: Path) -> Path | None:
    """Where compiled models are kept: beside the file, else in the user's cache, else nowhere."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for folder in (path.parent / ".openvino-cache", user / "hybrid-rt" / "openvino"):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Compiled models are trusted as they are: only a folder of our own will do.
            if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
                return folder
    return None
