"""Runs of the command itself: what it writes, resumes, refuses and survives."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hybrid_rt.images import load_pixels
from hybrid_rt.spec import Preprocess
from hybrid_train.cli import main
from hybrid_train.data.loader import ImageDataset
from hybrid_train.data.samples import DataOptions
from hybrid_train.data.sources import open_data
from hybrid_train.model.checkpoint import load_checkpoint

SMALL = ["--preset", "tiny", "--image-size", "32", "--epochs", "2", "--batch-size", "8",
         "--precision", "fp32"]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two classes of 30 images: bright at the top, bright at the bottom."""
    root = tmp_path_factory.mktemp("data") / "halves"
    rng = np.random.default_rng(0)
    for index in range(60):
        name = ("bottom", "top")[index % 2]
        image = rng.integers(0, 90, (40, 40), np.uint8)
        image[:20] += np.uint8(120 * (index % 2))
        image[20:] += np.uint8(120 * (1 - index % 2))
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name / f"{index:03}.png")
    return root


def train(*arguments):
    return main([str(a) for a in arguments])


def weights(folder):
    return load_file(folder / "best.safetensors")


def last_state(folder):
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different[:3]


def test_a_run_writes_everything(folders, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(folders, *SMALL, "--output", run) == 0
    out = capsys.readouterr().out
    assert "60 images for 'halves' (bottom: 30, top: 30)" in out
    assert f"next: hybrid-export {run} --fp16" in out
    metrics = json.loads((run / "metrics.json").read_text())
    assert len(metrics["history"]) == 2
    assert (
        metrics["test"]["count"] + metrics["val"]["count"]
        == 60
        - metrics["data"]["classes"]["train"]["top"]
        - metrics["data"]["classes"]["train"]["bottom"]
    )
    for folder in (run / "validation", run / "calibration"):
        labels = json.loads((folder / "labels.json").read_text())
        assert {entry["label"] for entry in labels} == {"bottom", "top"}
        assert all((folder / entry["file"]).is_file() for entry in labels)
    assert len(labels) == sum(metrics["data"]["classes"]["train"].values()), "fewer than 64"
    assert "<svg" in (run / "report.html").read_text()
    assert list((run / "tensorboard").glob("events*"))
    modes = {p.name: p.stat().st_mode & 0o777 for p in run.iterdir() if p.is_file()}
    assert len(set(modes.values())) == 1, modes  # none is private to the one who trained
    model, spec = load_checkpoint(run)
    assert spec.classes == ("bottom", "top")
    assert spec.temperature == metrics["temperature"]
    assert spec.operating_point.positive == "top"
    assert spec.provenance["data_fingerprint"] == metrics["data"]["fingerprint"]
    assert not model.training


def test_equal_seeds_make_equal_weights(folders, tmp_path):
    for name in ("a", "b"):
        assert train(folders, *SMALL, "--output", tmp_path / name, "--seed", 3) == 0
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert train(folders, *SMALL, "--output", tmp_path / "c", "--seed", 4) == 0
    assert not torch.equal(
        weights(tmp_path / "a")["head.0.weight"], weights(tmp_path / "c")["head.0.weight"]
    )


def start(folders, run, *more):
    command = [sys.executable, "-m", "hybrid_train", str(folders), *SMALL, "--output", str(run)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


def wait_for_epoch(process, epoch):
    for line in process.stdout:
        if line.startswith("epoch") and f" {epoch}/" in line:
            return
    raise AssertionError(process.stderr.read())


OPTIONS = ("--epochs", "6", "--ema", "0.9", "--mixup", "0.2", "--randaugment", "3")


@pytest.fixture(scope="module")
def uninterrupted(folders, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train(folders, *SMALL, "--output", run, *OPTIONS) == 0
    return run


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_resumes_to_the_bit(folders, tmp_path, uninterrupted, ending):
    run = tmp_path / "run"
    process = start(folders, run, *OPTIONS)
    wait_for_epoch(process, 2)
    time.sleep(0.05)  # into the middle of an epoch
    process.send_signal(ending)
    _, errors = process.communicate(timeout=60)
    if ending == signal.SIGINT:
        assert process.returncode == 130, errors
    state = torch.load(run / "last.pt", weights_only=True)
    assert 2 <= state["progress"]["epoch"] < 6
    assert train(folders, *SMALL, "--output", run, *OPTIONS, "--resume") == 0
    assert_equal(last_state(run), last_state(uninterrupted))
    assert_equal(weights(run), weights(uninterrupted))


def test_resume_with_other_settings_is_refused(folders, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(folders, *SMALL, "--output", run, "--resume") == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert train(folders, *SMALL, "--output", run) == 0
    capsys.readouterr()
    assert train(folders, *SMALL, "--output", run, "--resume", "--lr", "0.5") == 2
    assert "lr=0.001, now 0.5" in capsys.readouterr().err


def test_a_run_is_not_written_over(folders, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(folders, *SMALL, "--output", run) == 0
    before = weights(run)
    assert train(folders, *SMALL, "--output", run) == 2
    assert "--resume to continue, --overwrite to replace" in capsys.readouterr().err
    assert_equal(weights(run), before)


def test_a_full_disk_leaves_the_last_good_checkpoint(folders, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    saves = []
    real = torch.save

    def save(state, path):
        saves.append(path)
        if len(saves) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        real(state, path)

    monkeypatch.setattr(torch, "save", save)
    assert train(folders, *SMALL, "--output", run) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert torch.load(run / "last.pt", weights_only=True)["progress"]["epoch"] == 1
    assert not [p for p in run.iterdir() if p.name.startswith(".")]
    monkeypatch.undo()
    assert train(folders, *SMALL, "--output", run, "--resume") == 0


def test_evaluation_pixels_are_the_runtimes_own(folders):
    samples = open_data(str(folders), DataOptions())
    preprocess = Preprocess(height=24, width=32)
    for cache in (0, 1e9):
        dataset = ImageDataset(samples, preprocess)
        assert dataset.decode_all(cache) == (cache > 0)
        for index in (0, 17, 59):
            expected = load_pixels(samples.source(index), preprocess)
            assert np.array_equal(dataset[index][0], expected)


def test_two_processes_equal_one(folders, tmp_path):
    """Same global batch, gloo on the CPU; without what depends on the share (BN, dropout)."""
    options = [*SMALL, "--freeze-batchnorm", "--dropout", "0", "--class-weights", "balanced",
               "--freeze-epochs", "1", "--accumulate", "2"]  # fmt: skip
    assert train(folders, *options, "--output", tmp_path / "one") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0",
               "-m", "hybrid_train", str(folders), *options, "--output",
               str(tmp_path / "two")]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two"))
    for a, b in zip(one["history"], two["history"], strict=True):
        print(a["train_loss"] - b["train_loss"], a["val_loss"] - b["val_loss"])
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-4)
    made_by = json.loads((tmp_path / "two" / "config.json").read_text())["command"]
    assert made_by.startswith(f"torchrun --nproc-per-node 2 -m hybrid_train {folders} --preset")
    assert "Warning" not in done.stderr, done.stderr[-2000:]
    a, b = last_state(tmp_path / "one"), last_state(tmp_path / "two")
    gap = max((a[n].float() - b[n].float()).abs().max().item() for n in a)
    print(f"max weight difference {gap:.1e}")
    assert gap < 2e-3  # Adam turns float noise of tiny gradients into steps of this size


@pytest.mark.slow
def test_digits_beat_95_percent(tmp_path):
    """Any folder of images: scikit-learn's digits, without an option beyond the preset."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = tmp_path / "digits" / str(label) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype(np.uint8)).save(path)
    run = tmp_path / "run"
    options = ["--preset", "tiny", "--image-size", "64", "--augment", "none", "--epochs", "6"]
    assert train(tmp_path / "digits", *options, "--output", run) == 0
    accuracy = json.loads((run / "metrics.json").read_text())["test"]["accuracy"]
    print(f"test accuracy {accuracy:.4f}")
    assert accuracy > 0.95


@pytest.mark.slow
def test_the_full_size_hybrid_takes_a_step_in_bf16(folders, tmp_path):
    run = tmp_path / "run"
    options = ["--epochs", "1", "--batch-size", "32", "--precision", "bf16", "--warmup-epochs", "0"]
    assert train(folders, *options, "--output", run) == 0
    spec = load_checkpoint(run)[1]
    assert (spec.vit.model, spec.cnn.model) == ("vit_base_patch16_224", "resnet50")
    assert spec.num_features == 2816
    row = json.loads((run / "metrics.json").read_text())["history"][0]
    print(f"loss {row['train_loss']:.4f}, {row['images_per_s']:.1f} images/s")
    assert np.isfinite(row["train_loss"])
