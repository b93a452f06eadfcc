"""Data from anywhere: what is kept, dropped, named and refused; no patient on two sides."""

import datasets
import numpy as np
import pytest
from PIL import Image

from hybrid_rt.errors import DataError, UsageError
from hybrid_train.cli import main
from hybrid_train.data.samples import DataOptions, Samples
from hybrid_train.data.sources import open_data
from hybrid_train.data.splits import load_split, make_split, save_split, warnings_of
from hybrid_train.phantom import generate, write_parquet

SEED = 0  # has all four densities


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Phantoms as parquet with the hub dataset's columns, types and nulls."""
    folder = tmp_path_factory.mktemp("hub")
    write_parquet(folder, patients=24, seed=SEED, size=64, shards=2)
    return folder


def names_of(samples):
    return {samples.classes[label] for label in samples.labels}


def test_hub_columns_default_to_cancer(hub):
    samples = open_data(str(hub), DataOptions())
    assert samples.task == "cancer"
    assert samples.classes == ("no cancer", "cancer")
    assert len(samples) == 96
    assert samples.group_column == "patient_id"
    assert not samples.dropped
    rows = [row["cancer"] for row in generate(24, seed=SEED, size=64)]
    assert samples.labels.tolist() == rows


def test_null_labels_are_dropped_and_counted(hub):
    birads = [row["BIRADS"] for row in generate(24, seed=SEED, size=64)]
    nulls = birads.count(None)
    assert nulls > 0
    samples = open_data(str(hub), DataOptions(label="BIRADS"))
    assert samples.classes == ("0", "1", "2")
    assert samples.dropped == {"BIRADS is null": nulls}
    assert [samples.classes[k] for k in samples.labels] == [
        str(int(b)) for b in birads if b is not None
    ]


def test_null_labels_can_be_a_class_of_their_own(hub):
    """The notebook's four classes; never silently class 0."""
    samples = open_data(str(hub), DataOptions(label="BIRADS", null_label="not assessed"))
    assert samples.classes == ("not assessed", "0", "1", "2")
    birads = [row["BIRADS"] for row in generate(24, seed=SEED, size=64)]
    expected = ["not assessed" if b is None else str(int(b)) for b in birads]
    assert [samples.classes[k] for k in samples.labels] == expected
    assert not samples.dropped


@pytest.mark.parametrize(
    ("label", "more", "classes"),
    [
        ("cancer", [], ["no cancer", "cancer"]),
        ("BIRADS", [], ["0", "1", "2"]),
        ("BIRADS", ["--null-label", "not assessed"], ["not assessed", "0", "1", "2"]),
        ("density", [], ["A", "B", "C", "D"]),
    ],
)
def test_the_command_trains_on_each_label(hub, tmp_path, capsys, label, more, classes):
    from hybrid_train.model.checkpoint import load_checkpoint

    run = tmp_path / "run"
    arguments = [str(hub), "--label", label, *more, "--preset", "tiny", "--image-size", "32"]
    arguments += ["--epochs", "1", "--threshold", "youden"]
    assert main([*arguments, "--output", str(run)]) == 0
    out = capsys.readouterr().out
    assert ("--threshold is not used" in out) == (len(classes) > 2)
    assert ("is null)" in out) == (label in ("BIRADS", "density") and not more)
    assert list(load_checkpoint(run)[1].classes) == classes


def test_a_missing_column_lists_those_there(hub, capsys):
    assert main([str(hub), "--label", "tumour", "--output", "x"]) == 2
    error = capsys.readouterr().err
    assert "no label column 'tumour'" in error
    assert "patient_id, laterality, view, age, cancer" in error


def test_one_class_only(tmp_path):
    write_parquet(tmp_path, patients=2, seed=0, size=64, prevalence=0.0)
    with pytest.raises(DataError, match=r"one class only for 'cancer': 0 \(8 images\)"):
        open_data(str(tmp_path), DataOptions())


def parquet(path, rows, **types):
    features = datasets.Features({"image": datasets.Image(), **types})
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(path))
    return path


def made_image(value, mode="L", size=(20, 20)):
    return Image.new(mode, size, value)


def test_groups_with_nulls_are_refused(tmp_path):
    rows = [
        {"image": made_image(i), "patient_id": None if i == 3 else i // 2, "label": i % 2}
        for i in range(20)
    ]
    path = parquet(
        tmp_path / "a.parquet",
        rows,
        patient_id=datasets.Value("int64"),
        label=datasets.ClassLabel(names=["cat", "dog"]),
    )
    with pytest.raises(DataError, match=r"1 rows without a 'patient_id'.*both sides"):
        open_data(str(path), DataOptions())


def test_class_label_names_are_kept(tmp_path):
    rows = [{"image": made_image(i), "label": i % 2} for i in range(4)]
    path = parquet(tmp_path / "a.parquet", rows, label=datasets.ClassLabel(names=["cat", "dog"]))
    assert open_data(str(path), DataOptions()).classes == ("cat", "dog")


@pytest.fixture
def mixed(tmp_path):
    """Class folders with images of many modes and sizes, and one that is damaged."""
    root = tmp_path / "mixed"
    kinds = [("L", 90), ("RGB", (9, 200, 30)), ("RGBA", (9, 8, 7, 100)), ("I;16", 40000), ("P", 3)]
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(20):
            mode, value = kinds[i % len(kinds)]
            made_image(value, mode, (20 + i, 30 - i)).save(root / name / f"{i:02}.png")
    (root / "a" / "07.png").write_bytes((root / "a" / "07.png").read_bytes()[:40])
    return root


TINY = ["--preset", "tiny", "--image-size", "32", "--epochs", "1", "--batch-size", "8"]


def test_a_damaged_image_is_named_and_fatal_by_default(mixed, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([str(mixed), *TINY, "--output", str(run)]) == 2
    error = capsys.readouterr().err
    assert "1 of 40 images cannot be read: a/07.png" in error
    assert "--on-bad-image skip" in error
    assert not run.exists()


def test_a_damaged_image_can_be_left_out(mixed, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([str(mixed), *TINY, "--output", str(run), "--on-bad-image", "skip"]) == 0
    assert "left out 1 images that cannot be read: a/07.png" in capsys.readouterr().out
    assert "a/07.png" not in (run / "split.json").read_text()


def test_split_folders_are_used_as_given(tmp_path):
    for subset, count in (("train", 12), ("valid", 4), ("test", 4)):
        for i in range(count):
            path = tmp_path / subset / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            made_image(i).save(path)
    samples = open_data(str(tmp_path), DataOptions())
    split = make_split(samples)
    assert samples.classes == ("a", "b")
    for name, subset in split.subsets().items():
        folder = {"val": "valid"}.get(name, name)
        assert {samples.names[i].split("/")[0] for i in subset} == {folder}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nothing/here/at/all", "does not exist; expected a folder"),
        (
            "owner/dataset",
            "Hugging Face hub.*no folder has that name.*hybrid-train path/to/dataset",
        ),
        ("phantom:x", "expected phantom or phantom:N"),
        ("README.md", "is a .md file; expected a parquet"),
    ],
)
def test_data_that_is_not_there(data, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((DataError, UsageError), match=message):
        open_data(data, DataOptions())


def test_an_empty_folder_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"holds no images in sub-folders; expected .*/CLASS/"):
        open_data(str(tmp_path), DataOptions())


def test_a_damaged_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        open_data(str(tmp_path), DataOptions())


def grouped(labels, groups):
    return Samples(
        origin="made",
        task="t",
        classes=("a", "b"),
        labels=np.asarray(labels, np.int64),
        source=str,
        names=[str(i) for i in range(len(labels))],
        group_column="patient_id",
        groups=np.asarray(groups).astype(str),
    )


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_on_two_sides(seed):
    """Patients of very unequal size, positives crowded in a few: data made to tempt a leak."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, 60)
    groups = np.repeat(np.arange(60), sizes)
    labels = (groups % 7 == 0) | (rng.random(len(groups)) < 0.02)
    order = rng.permutation(len(groups))
    samples = grouped(labels[order], groups[order])
    split = make_split(samples, seed=seed)
    sides = [set(samples.groups[subset].tolist()) for subset in split.subsets().values()]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not sides[a] & sides[b]
    assert sum(map(len, split.subsets().values())) == len(samples)
    assert set.union(*sides) == set(samples.groups.tolist())
    for subset in split.subsets().values():
        share = samples.labels[subset].mean()
        assert abs(share - samples.labels.mean()) < 0.12


def test_given_split_with_shared_patients_warns():
    samples = grouped([0, 1] * 6, [0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 4, 4])
    subsets = np.array(["train"] * 8 + ["val"] * 4)
    from dataclasses import replace

    samples = replace(samples, given_split=subsets)
    notes = warnings_of(samples, make_split(samples))
    assert notes == ["1 patient_id stand on two sides of the data's own split: its metrics are "
                     "too good"]  # fmt: skip


def test_split_file_is_bound_to_its_data(tmp_path):
    samples = grouped([0, 1] * 40, np.arange(80) // 2)
    split = make_split(samples)
    save_split(tmp_path / "split.json", samples, split)
    again = load_split(tmp_path / "split.json", samples)
    for name in ("train", "val", "test"):
        assert np.array_equal(split.subsets()[name], again.subsets()[name])
    other = grouped([1, 0] * 40, np.arange(80) // 2)
    with pytest.raises(DataError, match="the data changed since the run began"):
        load_split(tmp_path / "split.json", other)


def test_too_few_patients_for_a_split():
    with pytest.raises(DataError, match="has 3 values of patient_id; a split of 15% needs 7"):
        make_split(grouped([0, 1] * 6, np.arange(12) // 4))


def test_a_null_label_is_a_class_of_its_own(hub):
    for name, message in (("0", "is a class of 'BIRADS' already"), (" ", "is empty")):
        with pytest.raises(UsageError, match=f"{message}; expected a name of its own"):
            open_data(str(hub), DataOptions(label="BIRADS", null_label=name))


def test_the_label_is_not_the_group(hub):
    with pytest.raises(UsageError, match="'patient_id' is the label and the group"):
        open_data(str(hub), DataOptions(label="patient_id"))


def test_classes_too_small_for_a_split():
    with pytest.raises(DataError, match="fewer than 7 images of each class of 't'"):
        make_split(grouped([0, 1] * 5, np.arange(10)))


def test_phantoms_are_read_as_any_table(hub):
    samples = open_data("phantom:24", DataOptions(label="BIRADS", null_label="not assessed"))
    rows = list(generate(6, seed=0))
    expected = ["not assessed" if r["BIRADS"] is None else str(int(r["BIRADS"])) for r in rows]
    assert [samples.classes[k] for k in samples.labels] == expected
    assert samples.columns["age"] == [row["age"] for row in rows]
    with pytest.raises(DataError, match="no image column 'scan'; it has image, patient_id"):
        open_data("phantom:24", DataOptions(image="scan"))


def test_paths_in_a_table_are_of_its_folder(tmp_path):
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(4):
        made_image(50 * i).save(tmp_path / "images" / f"{i}.png")
        rows.append({"image": f"images/{i}.png", "label": i % 2})
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    samples = open_data(str(tmp_path / "a.parquet"), DataOptions())
    pixels = [np.asarray(Image.open(samples.source(i)))[0, 0] for i in range(4)]
    assert pixels == [0, 50, 100, 150]
