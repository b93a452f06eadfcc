"""The public names of the training package, and what importing it costs."""

import subprocess
import sys

import pytest

import hybrid_train
from hybrid_train.config import RunConfig
from hybrid_train.model.checkpoint import load_checkpoint
from hybrid_train.run import fit


def test_public_names_are_those_of_their_modules():
    assert hybrid_train.RunConfig is RunConfig
    assert hybrid_train.fit is fit
    assert hybrid_train.load_checkpoint is load_checkpoint
    assert set(hybrid_train.__all__) <= set(dir(hybrid_train))
    with pytest.raises(AttributeError, match="'hybrid_train' has no attribute 'Nothing'"):
        _ = hybrid_train.Nothing


@pytest.mark.parametrize(
    "code",
    [
        "import hybrid_train",
        "from hybrid_train import RunConfig",
        "import hybrid_train.phantom, hybrid_train.report",
        "from hybrid_train.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["package", "RunConfig", "phantom", "help"],
)
def test_import_loads_no_pytorch(code):
    code += "\nimport sys; sys.exit(sum(name in sys.modules for name in ('torch', 'timm')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
