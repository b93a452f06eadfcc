"""The end of a run: measure the best epoch, fit what is fitted on validation data, write files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hybrid_train import metrics
from hybrid_train.calibration import fit_temperature
from hybrid_train.checkpoint import BEST, save_checkpoint
from hybrid_train.data import Samples
from hybrid_train.operating import choose_operating_point
from hybrid_train.optimization import restore_prior
from hybrid_train.origin import write_json
from hybrid_train.pictures import Pictures
from hybrid_train.processes import Processes
from hybrid_train.splits import Split
from hybrid_train.summary import write_run_report
from hybrid_train.trainer import Trainer

if TYPE_CHECKING:
    from hybrid_train.fit import RunOptions

Log = Callable[[str], None]

#: How many validation pictures a run keeps, so that an export can be verified without the data.
KEPT_PICTURES = 32


def finish(
    trainer: Trainer,
    samples: Samples,
    split: Split,
    options: RunOptions,
    processes: Processes,
    say: Log,
) -> dict[str, Any] | None:
    """Measure the best epoch in fp32, fit the temperature and threshold, write all files."""
    config = trainer.config
    model = trainer.best_model()
    counts = np.bincount(samples.labels[split.train], minlength=len(samples.classes))
    restore_prior(model.head[-1], counts, config)
    parts = {n: i for n, i in split.parts().items() if n != "train" and len(i)}
    logits = {name: trainer.logits(model, part, exact=True) for name, part in parts.items()}
    if not processes.first:
        return None
    labels = {name: samples.labels[part] for name, part in parts.items()}
    groups = {n: None if samples.groups is None else samples.groups[p] for n, p in parts.items()}
    temperature = fit_temperature(logits["val"], labels["val"])
    point = None
    if len(samples.classes) == 2:
        scaled = logits["val"] / temperature
        probability = 1 / (1 + np.exp(scaled[:, 0] - scaled[:, 1]))
        point = choose_operating_point(
            probability,
            labels["val"],
            positive=samples.classes[1],
            criterion=config.threshold,
            groups=groups["val"],
            seed=config.seed,
        )
    results = {
        name: metrics.evaluate(
            logits[name],
            labels[name],
            samples.classes,
            groups=groups[name],
            temperature=temperature,
            seed=config.seed,
        )
        for name in parts
    }
    chosen = results.get("test") or results["val"]
    spec = trainer.spec.replace(
        temperature=temperature,
        operating_point=point,
        provenance={
            **trainer.spec.provenance,
            "split": {name: len(part) for name, part in split.parts().items()},
            "metrics": {
                "on": "test" if "test" in results else "val",
                **{k: chosen[k] for k in ("auroc", "auroc_interval", "accuracy", "ece")},
            },
        },
    )
    save_checkpoint(options.output / BEST, model.cpu(), spec)
    save_validation(options.output / "validation", trainer.pictures, split)
    write_json(
        options.output / "metrics.json",
        {
            "best_epoch": trainer.progress.best_epoch + 1,
            "temperature": temperature,
            "data": {
                "origin": samples.origin,
                "fingerprint": samples.fingerprint(),
                "dropped": dict(samples.dropped),
                "unreadable": len(trainer.pictures.bad),
                "classes": {n: samples.counts(i) for n, i in split.parts().items()},
            },
            "history": trainer.progress.history,
            **results,
        },
    )
    write_run_report(trainer, spec, samples, split, logits, labels, results, options)
    say(summary(results, temperature, options.output))
    return results


def save_validation(folder: Path, pictures: Pictures, split: Split) -> None:
    """Keep some validation pictures, classes in turn, as PNG of the network's own pixels' source.

    The encoded originals are kept where the data has them.
    """
    samples = pictures.samples
    by_class = [split.val[samples.labels[split.val] == c] for c in range(len(samples.classes))]
    chosen = [int(p[k]) for k in range(KEPT_PICTURES) for p in by_class if k < len(p)]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entries = []
    for number, index in enumerate(chosen[:KEPT_PICTURES]):
        name, content = encoded(samples.source(index), f"{number:03}")
        (folder / name).write_bytes(content)
        entries.append(
            {
                "file": name,
                "label": samples.classes[samples.labels[index]],
                "group": None if samples.groups is None else str(samples.groups[index]),
            }
        )
    write_json(folder / "labels.json", entries)


def encoded(source: Any, stem: str) -> tuple[str, bytes]:
    """A file name and the encoded picture, unchanged where it is encoded already."""
    if isinstance(source, Path):
        return stem + source.suffix.lower(), source.read_bytes()
    if isinstance(source, Image.Image):
        import io

        buffer = io.BytesIO()
        source.save(buffer, format="PNG")
        return stem + ".png", buffer.getvalue()
    suffix = ".png" if source[:4] == b"\x89PNG" else ".jpg" if source[:2] == b"\xff\xd8" else ""
    return stem + suffix, source


def summary(results: dict[str, Any], temperature: float, output: Path) -> str:
    lines = []
    for name, result in results.items():
        auroc, interval = result["auroc"], result["auroc_interval"]
        text = f"{name}: accuracy {result['accuracy']:.4f}"
        if auroc is not None:
            text += f", AUROC {auroc:.4f}"
        if interval:
            text += f" (95% {interval[0]:.3f} to {interval[1]:.3f})"
        lines.append(text)
    lines.append(f"temperature {temperature:.3f}; report: {output / 'report.html'}")
    lines.append(f"next: hybrid-export {output} --fp16")
    return "\n".join(lines)
