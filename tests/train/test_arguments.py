"""Settings that cannot work are refused before data is read, and nothing is left behind."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

from hybrid_train.arguments import EXAMPLES, make_parser
from hybrid_train.cli import main
from hybrid_train.config import PRESETS
from hybrid_train.data.loader import BatchPlan


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "two"
    for i in range(40):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), 100 * (i % 2) + i).save(path)
    return root


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--epochs 0", "--epochs 0; expected 1 or more"),
        ("--seed -1", "--seed -1; expected 0 or more"),
        ("--lr nan", "--lr nan; expected"),
        ("--lr inf", "--lr inf; expected"),
        ("--lr 0", "--lr 0; expected more"),
        ("--mixup -1", "--mixup -1.0; expected 0 or more"),
        ("--randaugment 30", "--randaugment 30; expected 0 to 10"),
        ("--ema 1", "--ema 1.0; expected 0 or more, below 1"),
        ("--workers -2", "--workers -2; expected 0 or more"),
        ("--hidden 0", "expected sizes of 1 or more"),
        ("--val-fraction 0", "only that for the test may be 0"),
        ("--val-fraction 0.6 --test-fraction 0.5", "leave too little to train on"),
        ("--threshold often", "threshold rule 'often'; expected sensitivity=0.9"),
        ("--mixup 0.2 --batch-size 7", "which pair images; expected a multiple of 2"),
        ("--precision fp16", "fp16 needs a GPU"),
        ("--vit nonsense", "cannot make the ViT 'nonsense'"),
        ("--cnn test_vit", "'test_vit' is a ViT, not a CNN"),
        ("--image-size 50", "cannot be cut into the 16x16 patches of test_vit"),
        ("--pretrained one.pth", "expected none (the hub) or two"),
        ("--pretrained one.pth two.pth", "one.pth does not exist"),
        ("--weights none.pth", "none.pth does not exist"),
        ("--weights none.pth --cnn resnet50", "--cnn does not go with --weights"),
        ("--weights none.pth --pretrained", "both set the start; use one"),
        ("--resume --overwrite", "use one"),
        ("--label x", "a folder's classes are the names"),
    ],
)
def test_a_setting_that_cannot_work(options, message, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["not/there", "--preset", "tiny", *options.split(), "--output", str(run)]
    if "--label" in options:
        (tmp_path / "data").mkdir()
        arguments[0] = str(tmp_path / "data")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not run.exists()


def test_one_image_cannot_be_normalized_over(folders, tmp_path, capsys):
    run = tmp_path / "run"
    options = [str(folders), "--preset", "tiny", "--image-size", "32", "--batch-size", "1"]
    assert main([*options, "--epochs", "1", "--output", str(run)]) == 2
    assert "expected 2 or more for each, or --freeze-batchnorm" in capsys.readouterr().err
    assert not run.exists()


def test_a_batch_is_as_large_as_the_data_allow():
    tiny = PRESETS["tiny"].replace(batch_size=16)
    assert tiny.batch_size_for(100, processes=2) == 16
    assert tiny.batch_size_for(11, processes=2) == 10
    assert tiny.replace(mixup=0.1).batch_size_for(11, processes=2) == 8
    assert tiny.replace(mixup=0.1).batch_size_for(1, processes=1) == 2


def test_accumulated_batches_have_equal_weight():
    """Seven batches by three: groups of 3, 3 and 1, the weights move after each."""
    labels = np.zeros(70, np.int64)
    plan = BatchPlan(np.arange(70), labels, batch_size=10, seed=0, accumulate=3)
    assert [plan.group_size(b) for b in range(7)] == [3, 3, 3, 3, 3, 3, 1]
    assert [plan.ends_group(b) for b in range(7)] == [False, False, True] * 2 + [True]


def test_every_option_is_explained_and_has_an_example():
    """The examples of --help use each option, and each of them is a command that parses."""
    parser = make_parser()
    lines = EXAMPLES.replace("\\\n", " ").splitlines()
    commands = [line.split("-train ", 1)[-1] for line in lines if line.startswith("    hybrid")]
    commands += [line.split("hybrid_train ")[1] for line in lines if "torchrun" in line]
    assert len(commands) > 10
    used = set()
    for command in commands:
        parser.parse_args(shlex.split(command))
        used |= {word for word in shlex.split(command) if word.startswith("--")}
    for action in parser._actions:
        assert action.help, action.option_strings
        if action.option_strings and action.dest != "help":
            assert set(action.option_strings) <= used, action.option_strings


def test_defaults_in_the_help_are_those_of_the_presets():
    for action in make_parser()._actions:
        base = getattr(PRESETS["base"], action.dest, None)
        found = re.search(r"default: ([^;,)]*(?:,\d+)*)(?:; tiny: ([^)]*))?", action.help or "")
        if base is None or found is None or not isinstance(base, (int, float, str, tuple)):
            continue
        for preset, text in zip(("base", "tiny"), found.groups(), strict=True):
            value = getattr(PRESETS[preset], action.dest)
            text = text or found[1]
            if isinstance(value, tuple):
                assert text == ",".join(map(str, value)), action.dest
            elif isinstance(value, str):
                assert text.split()[0] == value or preset == "tiny", (action.dest, text, value)
            else:
                assert float(text) == value, (action.dest, preset)
