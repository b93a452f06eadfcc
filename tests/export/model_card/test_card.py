"""The model card and the detector's file in a bundle, with a run folder and without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from factories.tiny_hybrid import make_model
from hybrid_export import pipeline
from hybrid_export.bundle.sidecars import stage_detector
from hybrid_export.cli import main
from hybrid_export.model_card.card import CARD_MARK, model_card
from hybrid_export.model_card.run_record import Record, read_record
from hybrid_export.model_card.subgroups import subgroup_rows
from hybrid_export.onnx_graph.io import load
from hybrid_rt import DigestError, HybridEngine
from hybrid_rt.bundle.manifest import Bundle, BundleFile
from hybrid_rt.spec import OperatingPoint
from hybrid_train.cli import main as train
from hybrid_train.model.checkpoint import save_checkpoint
from hybrid_train.phantom import write_parquet


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("card")
    write_parquet(root / "data", patients=12, seed=0, size=64)
    options = "--preset tiny --image-size 32 --epochs 1 --batch-size 8 --precision fp32"
    assert train([str(root / "data"), *options.split(), "--output", str(root / "run")]) == 0
    return root / "run"


@pytest.fixture(scope="module")
def bundle_folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundle")
    assert main([str(run), "--output", str(output), "--no-tensorrt"]) == 0
    return output


def test_the_bundle_detects_out_of_distribution(run, bundle_folder):
    assert (bundle_folder / "model.ood.npz").read_bytes() == (run / "model.ood.npz").read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    kept = sorted((run / "validation").glob("*.png"))
    with HybridEngine(bundle_folder) as engine:
        assert max(p.ood_score for p in engine.predict(kept)) <= 1.2
        assert all(p.abstained for p in engine.predict(noise, abstain=True))
        assert engine.predict(kept[0], coverage=0.5).prediction_set


def test_the_card_tells_what_the_run_knew(run, bundle_folder):
    text = (bundle_folder / "MODEL_CARD.md").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    assert text.startswith(CARD_MARK)
    assert "not a medical device" in text
    for title in ("Model", "Intended use", "Data", "Performance", "Calibration",
                  "Operating point", "Prediction sets", "Out-of-distribution images",
                  "Limitations"):  # fmt: skip
        assert f"\n## {title}\n" in text
    assert f"fingerprint: {metrics['data']['fingerprint']}" in text
    split = json.loads((run / "split.json").read_text())
    sizes = {subset: len(split[subset]) for subset in ("train", "val", "test")}
    assert sum(sizes.values()) == 48
    patients = f"(val {sizes['val'] // 4}, test {sizes['test'] // 4})"  # four images each
    counts = ", ".join(f"{subset} {n}" for subset, n in sizes.items())
    assert f"split: {counts} images; by patient {patients}" in text
    for subgroup in ("all", "view CC", "laterality L", "density", "age", "implant 0"):
        assert f"| {subgroup}" in text
    assert f"{metrics['test']['ece']:.4f} with the temperature" in text
    assert "15 equal-width bins" in text
    assert "| model.onnx | fp32 | yes |" in text
    assert "hybrid-train " in text
    assert "unknown: the checkpoint" not in text
    assert "000.png" not in text  # no image or patient is named


def test_without_a_run_the_card_says_what_is_unknown(tiny_model, tmp_path):
    _, spec = tiny_model
    entry = BundleFile(sha256="0" * 64, bytes=1, format="onnx", precision="fp32")
    text = model_card(Bundle(spec=spec, files={"model.onnx": entry}), Record(), name="a_b")
    assert text.count("unknown: the checkpoint came without its run folder") >= 5
    assert "# Model card: a\\_b" in text
    assert "Measure it before any use" in text
    assert "`coverage` cannot be asked of this model" in text
    assert "it predicts a class for any image" in text
    assert "| model.onnx | fp32 | not run here |" in text


def test_names_cannot_break_the_card():
    _, spec = make_model()
    odd = ("a|b", "<script>", "x\ny")
    spec = spec.replace(
        classes=odd,
        operating_point=OperatingPoint(positive="a|b", threshold=0.5, criterion="youden"),
        provenance={"data": "![x](y)", "data_fingerprint": "1"},
    )
    text = model_card(Bundle(spec=spec), Record(), name="n")
    assert "<script>" not in text
    assert "a|b" not in text.replace("a\\|b", "")
    assert "![x](y)" not in text


def test_a_run_folder_of_another_model_is_not_used(run, tiny_model):
    _, spec = tiny_model
    assert read_record(run, spec) == Record()
    other = spec.replace(provenance={"data_fingerprint": "something else"})
    assert read_record(run, other) == Record()


def test_subgroups_are_those_of_the_rows():
    _, spec = make_model()
    spec = spec.replace(classes=("no", "yes"), operating_point=None)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(80):
        truth = i % 2
        p = float(np.clip(0.5 + (0.3 if truth else -0.3) * (1 if i < 40 else -1), 0, 1))
        rows.append(
            {
                "split": "test", "group": str(i // 4), "label": spec.classes[truth],
                "p_no": str(1 - p), "p_yes": str(p + rng.normal(0, 1e-6)),
                "view": "CC" if i < 40 else "MLO", "age": "" if i == 0 else "45",
            }
        )  # fmt: skip
    found = {row["subgroup"]: row for row in subgroup_rows(rows, spec, "test")}
    assert list(found) == ["all", "view CC", "view MLO", "age 0 to 49", "age unknown"]
    assert found["view CC"]["accuracy"][0] == found["view CC"]["auroc"][0] == 1.0
    assert found["view MLO"]["accuracy"][0] == found["view MLO"]["auroc"][0] == 0.0
    assert found["all"]["accuracy"][0] == 0.5
    assert found["all"]["patients"] == 20
    assert found["age unknown"]["auroc"] == (None, None)
    assert subgroup_rows(rows, spec, "val") == []


@pytest.fixture
def traced(monkeypatch, bundle_folder):
    """Tracing takes seconds; the bundle's ONNX model is the same."""
    monkeypatch.setattr(pipeline, "to_onnx", lambda *_, **__: load(bundle_folder / "model.onnx"))


def test_a_card_of_the_users_own_is_kept(traced, run, tmp_path, capsys):
    card = tmp_path / "MODEL_CARD.md"
    card.write_text("# Ours\n")
    assert main([str(run), "--output", str(tmp_path), "--no-tensorrt"]) == 0
    assert card.read_text() == "# Ours\n"
    assert "was not written by hybrid-export and is kept" in capsys.readouterr().out
    card.write_text(CARD_MARK + "\nold\n")
    assert main([str(run), "--output", str(tmp_path), "--no-tensorrt"]) == 0
    assert "## Performance" in card.read_text()


def test_a_checkpoint_without_its_detector_file(run, tmp_path, capsys):
    shutil.copy(run / "best.safetensors", tmp_path)
    staged = tmp_path / "staged"
    staged.mkdir()
    _, spec = pipeline.load(run)
    said: list[str] = []
    kept = stage_detector(tmp_path / "best.safetensors", spec, staged, said.append)
    assert "ood" not in kept.extras
    assert "conformal" in kept.extras
    assert "has no out-of-distribution detector; copy it there" in said[0]
    assert not list(staged.iterdir())
    (tmp_path / "model.ood.npz").write_bytes(b"another run's")
    with pytest.raises(DigestError, match="is not the file"):
        stage_detector(tmp_path / "best.safetensors", spec, staged, said.append)


def test_an_export_without_detector_removes_the_earlier_file(traced, run, bundle_folder, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(bundle_folder, output)
    model, spec = pipeline.load(run)
    save_checkpoint(tmp_path / "bare.safetensors", model, spec.replace(extras={}))
    assert main([str(tmp_path / "bare.safetensors"), "--output", str(output), "--no-tensorrt",
                 "--verify", str(run / "validation")]) == 0  # fmt: skip
    assert not (output / "model.ood.npz").exists()
    assert "it predicts a class for any image" in (output / "MODEL_CARD.md").read_text()
