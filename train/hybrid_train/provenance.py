"""Where a run came from: library versions and commit; and JSON that appears whole."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from hybrid_rt.files import atomic_path


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("hybrid-rt", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def git_commit() -> str | None:
    """The commit of the sources, where they are a git checkout."""
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
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
