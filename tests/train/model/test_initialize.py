"""Runs that start from a checkpoint: what is kept of it, what the options change."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hybrid_train.cli import main
from hybrid_train.model.checkpoint import load_checkpoint

TINY = ["--preset", "tiny", "--epochs", "1", "--batch-size", "8", "--precision", "fp32"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Dark and bright images, one in four bright."""
    root = tmp_path_factory.mktemp("data") / "brightness"
    rng = np.random.default_rng(0)
    for i in range(64):
        bright = i % 4 == 0
        path = root / ("bright" if bright else "dark") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = 120 if bright else 0
        Image.fromarray(rng.integers(low, low + 120, (24, 24), np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def first(folders, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "first"
    options = ["--image-size", "32", "--class-weights", "balanced", "--resize", "fit"]
    assert main([str(folders), *TINY, *options, "--output", str(run)]) == 0
    return run


def test_a_finished_run_resumed_stays_as_it_is(folders, first):
    """The class frequencies go into the bias once, however often the run is finished."""
    before, spec = load_checkpoint(first)
    options = ["--image-size", "32", "--class-weights", "balanced", "--resize", "fit"]
    assert main([str(folders), *TINY, *options, "--output", str(first), "--resume"]) == 0
    after, again = load_checkpoint(first)
    assert all(torch.equal(a, after.state_dict()[n]) for n, a in before.state_dict().items())
    assert again == spec


def test_weights_keep_their_pixels_unless_asked(folders, first, tmp_path):
    run = tmp_path / "run"
    weights = ["--weights", str(first), "--lr", "1e-9"]
    assert main([str(folders), *TINY, *weights, "--crop", "breast", "--output", str(run)]) == 0
    old, new = load_checkpoint(first), load_checkpoint(run)
    assert (new[1].preprocess.height, new[1].preprocess.resize) == (32, "fit")
    assert (old[1].preprocess.crop, new[1].preprocess.crop) == ("none", "breast")
    # Nothing moved at that rate: these are the weights it started with.
    gap = (old[0].vit.pos_embed - new[0].vit.pos_embed).abs().max()
    assert gap < 1e-6, gap
    assert new[1].provenance["weights"] == str(first)


def test_weights_at_another_size_are_resampled(folders, first, tmp_path):
    run = tmp_path / "run"
    weights = ["--weights", str(first), "--image-size", "64"]
    assert main([str(folders), *TINY, *weights, "--output", str(run)]) == 0
    model, spec = load_checkpoint(run)
    assert (spec.preprocess.height, spec.preprocess.resize) == (64, "fit")
    assert model.vit.pos_embed.shape[1] == 16 + 1


def test_weights_of_other_classes_bring_no_head(first, tmp_path):
    root, run = tmp_path / "three", tmp_path / "run"
    for i in range(45):
        path = root / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (24, 24), 80 * (i % 3)).save(path)
    assert main([str(root), *TINY, "--weights", str(first), "--output", str(run)]) == 0
    assert load_checkpoint(run)[1].classes == ("a", "b", "c")
    assert len(json.loads((run / "metrics.json").read_text())["val"]["per_class"]) == 3
