"""Child processes of Python that import from the same places as their parent.

``python -m`` and ``python -c`` look into the current folder first, so that a file there called
``json.py`` or ``onnx.py`` would run in place of the library. ``-I`` turns that off, and the child
gets the parent's ``sys.path``.
"""

from __future__ import annotations

import json
import sys

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import importlib; "
    "sys.exit(importlib.import_module(sys.argv[2]).main(sys.argv[3:]))"
)


def child_command(module: str, *arguments: str) -> list[str]:
    """Return the command that calls ``main(arguments)`` of a module in a new interpreter.

    What ``main`` returns is the exit code, as for ``sys.exit``.
    """
    return [sys.executable, "-I", "-c", _START, json.dumps(sys.path), module, *arguments]
