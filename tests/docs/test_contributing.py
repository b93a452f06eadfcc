"""The example backend of the contributor's page works, and the page's map is the tree."""

import re
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from factories.tiny_onnx import tiny_spec, write_tiny_onnx
from hybrid_rt import DeviceError, HybridEngine, ModelFileError
from hybrid_rt.backends import registry
from tools.backend_contract import check_contract, run_alone

TOP = Path(__file__).resolve().parents[2]
PAGE = (TOP / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
MODULE = "hybrid_rt.backends.onnx_reference"


@pytest.fixture
def way(monkeypatch):
    """Follow the page; return the arguments and the tolerance of the contract's row."""
    session, entry, row = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    module = types.ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)
    exec(compile(session, "onnx_reference.py", "exec"), vars(module))
    for name, backend in eval(f"{{{entry}}}", vars(registry)).items():
        monkeypatch.setitem(registry.BACKENDS, name, backend)
        names = (*registry.SUFFIXES[".onnx"], name)
        monkeypatch.setitem(registry.SUFFIXES, ".onnx", names)
    ((_, found),) = eval(f"{{{row}}}").items()
    return found


@pytest.fixture
def model(tmp_path):
    return write_tiny_onnx(tmp_path / "model.onnx", tiny_spec())


def test_example_passes_the_contract(way, model):
    pixels = np.random.default_rng(2).integers(0, 256, (11, 32, 32, 3), np.uint8)
    reference = run_alone(model, pixels)
    arguments, tolerance = way
    check_contract(model, pixels, reference, arguments, tolerance)
    with HybridEngine(model, **arguments) as engine, ThreadPoolExecutor(4) as pool:
        for outputs in pool.map(engine.run, [pixels] * 8):
            assert np.abs(outputs["logits"] - reference["logits"]).max() <= tolerance


def test_example_raises_our_errors(way, model):
    arguments, _ = way
    with pytest.raises(DeviceError, match="use device='cpu'"):
        registry.open_session(model, spec=tiny_spec(), device="cuda:0", **arguments)
    with pytest.raises(ModelFileError, match="make the file with hybrid-export"):
        registry.open_session(model, spec=tiny_spec(size=64), **arguments)
    model.write_bytes(b"junk")
    with pytest.raises(ModelFileError, match="cannot be read by onnx"):
        registry.open_session(model, spec=tiny_spec(), **arguments)


def test_example_has_60_lines():
    session, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for line in session.splitlines() if line.strip()]
    assert len(lines) <= 60


def test_map_is_the_tree():
    for package in ("hybrid_rt", "export/hybrid_export", "train/hybrid_train"):
        table = re.search(rf"\| `{package}/` \|.*?\n\n", PAGE, re.DOTALL)
        assert table is not None, package
        named = set(re.findall(r"`([\w/.]+)`", table[0].partition("\n")[2]))
        paths = {name for name in named if name.endswith(("/", ".py"))}
        assert [name for name in paths if not (TOP / package / name).exists()] == [], package
        folders = {f"{p.parent.name}/" for p in (TOP / package).glob("*/__init__.py")}
        modules = {p.name for p in (TOP / package).glob("*.py") if p.name[:2] != "__"}
        assert sorted((folders | modules) - paths) == [], package
