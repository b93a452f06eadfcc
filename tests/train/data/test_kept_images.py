"""Images that a run keeps: the same pixels, spread over patients, none both kept and held out."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from hybrid_rt.bundle.golden import pixels_digest
from hybrid_rt.images import load_pixels
from hybrid_rt.spec import Preprocess
from hybrid_train.config import PRESETS, RunOptions
from hybrid_train.data.kept_images import CALIBRATION, VALIDATION, keep_images
from hybrid_train.data.loader import ImageDataset
from hybrid_train.data.samples import DataOptions, Samples
from hybrid_train.data.splits import Split
from hybrid_train.run import prepare_folder

PATIENT = "P_00820"  # in the metadata of every file
PREPROCESS = Preprocess(height=24, width=24)


def encoded(image):
    """A PNG file that names the patient, as a DICOM header does."""
    buffer = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", PATIENT)
    image.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def breast(rng):
    """A bright half ellipse at the left edge of a dark image; no two are alike."""
    y, x = np.mgrid[:80, :60]
    inside = (x / rng.uniform(15, 40)) ** 2 + ((y - 40) / rng.uniform(15, 30)) ** 2 < 1
    return Image.fromarray((inside * rng.integers(120, 250, (80, 60))).astype(np.uint8))


def make_dataset(patients, each, preprocess=PREPROCESS, same=()):
    """Decoded images, ``each`` of a patient, every third patient ill; ``same[i]`` copies i."""
    rng = np.random.default_rng(0)
    files = [encoded(breast(rng)) for _ in range(patients * each)]
    for copy, original in dict(same).items():
        files[copy] = files[original]
    patient = np.repeat(np.arange(patients), each)
    samples = Samples(
        origin="test",
        task="cancer",
        classes=("no cancer", "cancer"),
        labels=(patient % 3 == 0).astype(np.int64),
        source=files.__getitem__,
        names=[f"{i:04}" for i in range(len(files))],
        group_column="patient_id",
        groups=patient.astype(str),
    )
    dataset = ImageDataset(samples, preprocess)
    dataset.decode_all(1e9, quiet=True)
    return dataset


def split_of(dataset, val):
    """The first ``val`` images validate, the others train."""
    indices = np.arange(len(dataset))
    return Split(train=indices[val:], val=indices[:val], test=indices[:0])


def kept(run, name):
    return json.loads((run / name / "labels.json").read_text())


def digests(run, name, preprocess=PREPROCESS):
    entries = kept(run, name)
    return [pixels_digest(load_pixels(run / name / e["file"], preprocess)) for e in entries]


def test_calibration_takes_patients_in_turn(tmp_path):
    dataset = make_dataset(patients=90, each=6)
    keep_images(tmp_path, dataset, split_of(dataset, 60), seed=0)
    entries = kept(tmp_path, CALIBRATION)
    assert [e["label"] for e in entries] == ["no cancer", "cancer"] * 32
    assert all(int(e["group"]) >= 10 for e in entries), "patients of the training subset"
    for label, patients in (("no cancer", 54), ("cancer", 26)):
        groups = Counter(e["group"] for e in entries if e["label"] == label)
        assert len(groups) == min(32, patients), "as many patients as there are"
        assert max(groups.values()) <= -(-32 // patients)
    assert len(kept(tmp_path, VALIDATION)) == 32
    assert len({e["group"] for e in kept(tmp_path, VALIDATION)}) == 10


def test_equal_seeds_keep_equal_images(tmp_path):
    dataset = make_dataset(patients=30, each=4)
    split = split_of(dataset, 40)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        keep_images(tmp_path / name, dataset, split, seed=seed)
    a, b, c = (digests(tmp_path / name, CALIBRATION) for name in "abc")
    assert a == b
    assert a != c


def test_no_image_is_in_both_folders(tmp_path):
    """Not even if the data has it twice, as copies in training and validation."""
    copies = {40 + i: i for i in range(40)} | {80 + i: 120 + i for i in range(40)}
    dataset = make_dataset(patients=40, each=4, same=copies)
    keep_images(tmp_path, dataset, split_of(dataset, 40), seed=0)
    calibration = digests(tmp_path, CALIBRATION)
    assert not set(calibration) & set(digests(tmp_path, VALIDATION))
    assert len(calibration) == 40, "80 of 120 are copies, 40 of them of each other"
    assert len(set(calibration)) == 40


def test_nothing_but_copies_keeps_no_folder(tmp_path):
    (tmp_path / CALIBRATION).mkdir()
    (tmp_path / CALIBRATION / "000.png").write_bytes(b"an earlier run's")
    dataset = make_dataset(patients=6, each=2, same={6 + i: i for i in range(6)})
    keep_images(tmp_path, dataset, split_of(dataset, 6), seed=0)
    assert not (tmp_path / CALIBRATION).exists()
    assert len(kept(tmp_path, VALIDATION)) == 6


@pytest.mark.parametrize(
    "preprocess",
    [PREPROCESS, Preprocess(height=24, width=32, crop="breast"),
     Preprocess(height=32, width=24, resize="fit")],
    ids=lambda p: f"{p.resize}-{p.crop}",
)  # fmt: skip
def test_calibration_has_the_pixels_without_metadata(tmp_path, preprocess):
    dataset = make_dataset(patients=6, each=4, preprocess=preprocess)
    keep_images(tmp_path, dataset, split_of(dataset, 8), seed=0)
    trained = {pixels_digest(dataset.load(i)) for i in range(8, 24)}
    assert set(digests(tmp_path, CALIBRATION, preprocess)) == trained
    for path in (tmp_path / CALIBRATION).glob("*.png"):
        assert PATIENT.encode() not in path.read_bytes()
    originals = {dataset.samples.source(i) for i in range(8)}
    assert {p.read_bytes() for p in (tmp_path / VALIDATION).glob("*.png")} == originals


def test_overwrite_removes_the_kept_images(tmp_path):
    dataset = make_dataset(patients=6, each=4)
    split = split_of(dataset, 8)
    keep_images(tmp_path, dataset, split, seed=0)
    options = RunOptions(data="test", output=tmp_path, data_options=DataOptions(), overwrite=True)
    prepare_folder(options, PRESETS["tiny"], dataset.samples, split)
    assert not (tmp_path / VALIDATION).exists()
    assert not (tmp_path / CALIBRATION).exists()
