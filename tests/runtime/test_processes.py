"""Child processes import what their parent imports, whatever lies in the current folder."""

import subprocess
import sys

import pytest

from hybrid_rt.processes import child_command

MODULE = """
import sys, json, numpy
def main(arguments):
    print(json.dumps([arguments, numpy.__name__]))
    return 3
"""


@pytest.mark.parametrize("shadowed", ["json", "numpy", "hybrid_rt", "importlib"])
def test_child_ignores_modules_of_the_current_folder(shadowed, tmp_path, monkeypatch):
    modules, current = tmp_path / "modules", tmp_path / "current"
    modules.mkdir()
    current.mkdir()
    (modules / "given_to_the_child.py").write_text(MODULE)
    (current / f"{shadowed}.py").write_text("raise SystemExit('the current folder was imported')")
    monkeypatch.setattr(sys, "path", [str(modules), *(p for p in sys.path if p)])
    command = child_command("given_to_the_child", "a", "b c")
    done = subprocess.run(command, cwd=current, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, '[["a", "b c"], "numpy"]\n'), done.stderr
