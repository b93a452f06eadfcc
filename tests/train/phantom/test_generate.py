"""Phantoms: the hub dataset's schema, equal images for equal seeds, no shortcut."""

import datasets
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hybrid_rt.errors import UsageError
from hybrid_train.phantom import generate, write_parquet
from hybrid_train.phantom.__main__ import main
from hybrid_train.phantom.anatomy import power_law_noise
from hybrid_train.phantom.generate import parse_phantom

SMALL = {"size": 128}


def test_rows_have_the_hub_columns_and_types(tmp_path):
    (path,) = write_parquet(tmp_path, patients=12, seed=1, **SMALL)
    table = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert {name: str(f.dtype) for name, f in table.features.items()} == {
        "image": "PIL.Image.Image",
        "patient_id": "int64",
        "laterality": "string",
        "view": "string",
        "age": "float64",
        "cancer": "int64",
        "invasive": "int64",
        "implant": "int64",
        "BIRADS": "float64",
        "density": "string",
        "text": "string",
        "text2": "string",
    }
    row = table[0]
    assert (row["image"].mode, row["image"].size, row["image"].format) == ("L", (128, 128), "PNG")
    views = {(r["laterality"], r["view"]) for r in table if r["patient_id"] == 10_000}
    assert views == {("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")}
    assert None in table["BIRADS"]
    assert set(table["BIRADS"]) <= {None, 0.0, 1.0, 2.0}


def pixels(rows):
    return [np.asarray(row["image"]) for row in rows]


def test_equal_seeds_make_equal_images():
    complete = list(generate(3, seed=7, **SMALL))
    pieces = [*generate(1, seed=7, **SMALL), *generate(2, seed=7, start=1, **SMALL)]
    for a, b in zip(complete, pieces, strict=True):
        assert np.array_equal(np.asarray(a.pop("image")), np.asarray(b.pop("image")))
        assert a == b
    other = pixels(generate(3, seed=8, **SMALL))
    assert not any(np.array_equal(a, b) for a, b in zip(pixels(generate(3, seed=7, **SMALL)), other,
                                                          strict=True))  # fmt: skip


def test_difficulty_changes_only_the_lesion():
    easy = list(generate(8, seed=3, prevalence=0.5, with_masks=True, **SMALL))
    hard = list(generate(8, seed=3, prevalence=0.5, with_masks=True, difficulty=1e6, **SMALL))
    changed = 0
    for a, b in zip(easy, hard, strict=True):
        gap = np.abs(np.asarray(a["image"], int) - np.asarray(b["image"], int))
        assert a["cancer"] == b["cancer"] == int(a["mask"].any())
        if a["cancer"]:
            changed += 1
            assert gap[a["mask"]].mean() > 10 * gap[~a["mask"]].mean()
        else:
            assert gap.max() == 0
    assert changed >= 4


def test_boxes_hold_the_masks():
    for row in generate(6, seed=3, prevalence=0.6, with_masks=True, **SMALL):
        if row["box"] is None:
            assert not row["mask"].any()
            continue
        left, top, right, bottom = row["box"]
        inside = row["mask"][top:bottom, left:right]
        assert inside.sum() == row["mask"].sum()
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_a_patient_is_the_same_at_any_size():
    def facts(size):
        return [
            {k: v for k, v in row.items() if k != "image"} for row in generate(4, seed=2, size=size)
        ]

    assert facts(64) == facts(96)


def test_both_views_show_the_lesion_about_as_deep():
    """How far from the chest wall: a radiologist looks for it at the same depth in both views."""
    depths = {}
    for row in generate(40, seed=6, prevalence=0.6, with_masks=True, **SMALL):
        if row["box"] is not None:
            left, _, right, _ = row["box"]
            depth = (left + right) / 2 / 128
            depth = depth if row["laterality"] == "L" else 1 - depth
            depths.setdefault((row["patient_id"], row["laterality"]), []).append(depth)
    pairs = np.array([d for d in depths.values() if len(d) == 2])
    assert len(pairs) > 30
    correlation = np.corrcoef(pairs.T)[0, 1]
    print(f"correlation of depths {correlation:.3f}")
    assert correlation > 0.85


def test_both_views_of_a_breast_show_the_lesion():
    rows = list(generate(10, seed=5, prevalence=0.5, with_masks=True, **SMALL))
    breasts = {}
    for row in rows:
        breasts.setdefault((row["patient_id"], row["laterality"]), set()).add(row["lesion"])
    assert all(len(kinds) == 1 for kinds in breasts.values())
    assert {row["lesion"] for row in rows} == {
        None,
        "mass",
        "spiculated mass",
        "calcifications",
    }


def test_brightness_does_not_reveal_the_label():
    rows = list(generate(200, seed=11, size=96))
    labels = [row["cancer"] for row in rows]
    images = pixels(rows)
    for name, feature in {"mean": np.mean, "std": np.std, "max": np.max}.items():
        auroc = roc_auc_score(labels, [feature(image) for image in images])
        print(f"{name}: AUROC {auroc:.3f}")
        assert max(auroc, 1 - auroc) < 0.65, name


def test_denser_categories_are_brighter():
    rows = list(generate(60, seed=2, size=96, prevalence=0, nulls=False))
    means = {
        d: np.mean([np.asarray(r["image"]).mean() for r in rows if r["density"] == d])
        for d in "ABCD"
    }
    assert means["A"] < means["B"] < means["C"] < means["D"]


def test_texture_follows_the_power_law():
    field = power_law_noise(np.random.default_rng(0), 256, exponent=3.0)
    power = np.abs(np.fft.fft2(field)) ** 2
    f = np.fft.fftfreq(256) * 256
    radius = np.hypot(f[:, None], f[None, :])
    bands = [(8, 12), (16, 24), (32, 48), (64, 96)]
    x = [np.log(np.sqrt(a * b)) for a, b in bands]
    y = [np.log(power[(radius >= a) & (radius < b)].mean()) for a, b in bands]
    slope = np.polyfit(x, y, 1)[0]
    assert slope == pytest.approx(-3.0, abs=0.15)


@pytest.mark.parametrize(
    ("data", "patients"), [("phantom", 400), ("phantom:4", 1), ("phantom:9", 3)]
)
def test_parse_phantom(data, patients):
    assert parse_phantom(data) == patients


@pytest.mark.parametrize("data", ["phantom:", "phantom:x", "phantom:-8", "phantom:3", "ghost:8"])
def test_parse_phantom_refuses(data):
    with pytest.raises(UsageError, match="expected phantom or phantom:N"):
        parse_phantom(data)


def test_command_writes_parquet_and_a_page(tmp_path, capsys):
    page = tmp_path / "page.png"
    argv = [str(tmp_path), "--patients", "2", "--size", "64", "--preview", str(page)]
    assert main(argv) == 0
    assert page.read_bytes().startswith(b"\x89PNG")
    assert "8 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--difficulty", "0", "difficulty=0.0"),
        ("--difficulty", "nan", "difficulty=nan"),
        ("--prevalence", "1.5", "prevalence=1.5"),
        ("--seed", "-1", "seed=-1"),
        ("--size", "8", "size=8"),
        ("--patients", "0", "patients=0"),
        ("--shards", "9", "shards=9"),
        ("--preview", "page.txt", "expected a name ending in .png or .jpg"),
    ],
)
def test_impossible_options(option, value, message, tmp_path, capsys):
    assert main([str(tmp_path / "out"), "--patients", "2", "--size", "64", option, value]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
