"""Provenance of a run: library versions and commit; and a complete JSON file."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from hybrid_rt.files import atomic_path


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that change results."""
    from importlib.metadata import version

    names = ("hybrid-rt", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def git_commit() -> str | None:
    """Return the commit of the sources; None if they are no git checkout."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON: the complete file, or the older one stays."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
