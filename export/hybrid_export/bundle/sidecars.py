"""Sidecar files of a bundle: the out-of-distribution detector and the model card."""

from __future__ import annotations

from pathlib import Path

from hybrid_export.model_card.card import CARD_MARK, CARD_NAME, model_card
from hybrid_export.model_card.run_record import read_record
from hybrid_export.state import Log
from hybrid_rt.bundle.manifest import Bundle
from hybrid_rt.spec import ModelSpec
from hybrid_rt.uncertainty.ood import EXTRAS_KEY, OodDetector, OodEntry
from hybrid_train.model.checkpoint import checkpoint_file


def stage_detector(source: Path, spec: ModelSpec, staged: Path, log: Log) -> ModelSpec:
    """Copy the detector's file; return the spec, without it if it is not beside the checkpoint.

    Raises DigestError or ModelFileError if it is another run's or damaged.
    """
    entry = OodEntry.of(spec)
    if entry is None:
        return spec
    folder = checkpoint_file(source).parent
    if OodDetector.load(folder, spec) is None:
        log(
            f"warning: {entry.file} is not beside {checkpoint_file(source)}, so the exported "
            "model has no out-of-distribution detector; copy it there from the run folder"
        )
        extras = {key: value for key, value in spec.extras.items() if key != EXTRAS_KEY}
        return spec.replace(extras=extras)
    (staged / entry.file).write_bytes((folder / entry.file).read_bytes())
    return spec


def write_card(bundle: Bundle, source: Path, staged: Path, output: Path, log: Log) -> None:
    """Stage the model card; a file of that name that was not made here is left alone."""
    there = output / CARD_NAME
    if there.exists() and not there.read_text(encoding="utf-8", errors="replace").startswith(
        CARD_MARK
    ):
        log(f"warning: {there} was not written by hybrid-export and is kept; no model card written")
        return
    folder = source if source.is_dir() else source.parent
    text = model_card(bundle, read_record(folder, bundle.spec), name=folder.resolve().name)
    (staged / CARD_NAME).write_text(text, encoding="utf-8")


def sidecars(bundle: Bundle, staged: Path) -> list[str]:
    """Return the names of the staged files that are not models."""
    entry = OodEntry.of(bundle.spec)
    names = [CARD_NAME, *([entry.file] if entry else [])]
    return [name for name in names if (staged / name).is_file()]
