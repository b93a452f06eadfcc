"""Finish a run: measure the best epoch, fit on validation data, write the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.spec import ModelSpec
from hybrid_rt.uncertainty.ood import EXTRAS_KEY as OOD_KEY
from hybrid_rt.uncertainty.ood import OOD_NAME
from hybrid_train.data.kept_images import keep_images
from hybrid_train.evaluation import metrics
from hybrid_train.loop.epoch_log import Log
from hybrid_train.loop.optimizer import restore_prior
from hybrid_train.loop.trainer import Trainer
from hybrid_train.model.checkpoint import BEST, save_checkpoint
from hybrid_train.model.hybrid import HybridClassifier
from hybrid_train.posthoc.fit import LogitsAndFeatures, Subset, fit_on_validation, measure
from hybrid_train.provenance import write_json
from hybrid_train.report.collect import write_run_report
from hybrid_train.report.predictions import PREDICTIONS, write_predictions

#: Files of a finished run that --overwrite removes with the others.
FITTED = (OOD_NAME, PREDICTIONS)
#: A key of a finished model's provenance: its bias is for the data's own class frequencies.
PRIOR_RESTORED = "prior_restored"
#: Training images whose features the out-of-distribution detector is fitted to.
TRAINING_IMAGES = 4096


def finish(trainer: Trainer, command: str, log: Log) -> dict[str, Any] | None:
    """Measure the best epoch in fp32, fit on validation data, write all files.

    Returns:
        The metrics of each subset; None in all processes but the first.
    """
    config, output = trainer.config, trainer.folder
    samples, split = trainer.dataset.samples, trainer.split
    model, found = trainer.best_model()
    if PRIOR_RESTORED not in found.provenance:  # else the run was finished before
        counts = np.bincount(samples.labels[split.train], minlength=len(samples.classes))
        restore_prior(model, counts, config)
    indices = {n: i for n, i in split.subsets().items() if n != "train" and len(i)}
    subsets = {name: run_network(trainer, model, subset) for name, subset in indices.items()}
    chosen_train = draw(split.train, TRAINING_IMAGES, config.seed)
    train_features = run_network(trainer, model, chosen_train).features
    if not trainer.processes.first:
        return None
    spec, detector = fit_on_validation(trainer.spec, subsets["val"], train_features, config)
    results = {
        name: metrics.evaluate(
            subset.logits,
            subset.labels,
            samples.classes,
            groups=subset.groups,
            temperature=spec.temperature,
            seed=config.seed,
        )
        | measure(spec, detector, subset, config.seed)
        for name, subset in subsets.items()
    }
    chosen = results.get("test") or results["val"]
    entry = detector.save(output / OOD_NAME)
    spec = spec.replace(
        extras={**spec.extras, OOD_KEY: entry.to_dict()},
        provenance={
            **spec.provenance,
            PRIOR_RESTORED: True,
            "split": {name: len(subset) for name, subset in split.subsets().items()},
            "metrics": {
                "on": "test" if "test" in results else "val",
                **{k: chosen[k] for k in ("auroc", "auroc_interval", "accuracy", "ece")},
            },
        },
    )
    save_checkpoint(output / BEST, model.cpu(), spec)
    keep_images(output, trainer.dataset, split, seed=config.seed)
    write_json(
        output / "metrics.json",
        {
            "best_epoch": trainer.progress.best_epoch + 1,
            "temperature": spec.temperature,
            "data": {
                "origin": samples.origin,
                "fingerprint": samples.fingerprint(),
                "dropped": dict(samples.dropped),
                "unreadable": len(trainer.dataset.bad),
                "classes": {n: samples.counts(i) for n, i in split.subsets().items()},
            },
            "history": trainer.progress.history,
            **results,
        },
    )
    write_predictions(output / PREDICTIONS, spec, detector, samples, split, subsets)
    write_run_report(
        output,
        spec,
        trainer.dataset,
        split,
        subsets,
        results=results,
        history=trainer.progress.history,
        command=command,
    )
    log(summary(results, spec, output))
    return results


def run_network(trainer: Trainer, model: HybridClassifier, indices: NDArray[np.int64]) -> Subset:
    """Run the final network in fp32 on images, after the evaluation transform."""
    samples = trainer.dataset.samples
    classes = len(samples.classes)
    width = classes + trainer.spec.num_features
    both = trainer.outputs(LogitsAndFeatures(model), indices, width, in_fp32=True)
    return Subset(
        logits=both[:, :classes],
        features=both[:, classes:],
        labels=samples.labels[indices],
        groups=None if samples.groups is None else samples.groups[indices],
    )


def draw(indices: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Return at most ``most`` of the indices, drawn uniformly, in their order."""
    if len(indices) <= most:
        return indices
    chosen = np.random.default_rng([seed, 5]).choice(len(indices), most, replace=False)
    return indices[np.sort(chosen)]


def summary(results: dict[str, Any], spec: ModelSpec, output: Path) -> str:
    """Return the lines that end the log of a run."""
    lines = []
    for name, result in results.items():
        auroc, interval = result["auroc"], result["auroc_interval"]
        text = f"{name}: accuracy {result['accuracy']:.4f}"
        if auroc is not None:
            text += f", AUROC {auroc:.4f}"
        if interval:
            text += f" (95% {interval[0]:.3f} to {interval[1]:.3f})"
        lines.append(text)
    point = spec.operating_point
    if point is not None:
        chosen = results.get("test") or results["val"]
        found = chosen["operating_point"]
        rates = [
            f"{name} {share(found[name], found[f'{name}_interval'])}"
            for name in ("sensitivity", "specificity")
        ]
        lines.append(
            f"threshold {point.threshold:.4f} on {point.positive} ({point.criterion}): "
            f"{', '.join(rates)} on {'test' if 'test' in results else 'val'}"
        )
    lines.append(f"temperature {spec.temperature:.3f}; report: {output / 'report.html'}")
    lines.append(f"next: hybrid-export {output} --fp16")
    return "\n".join(lines)


def share(value: float | None, interval: tuple[float, float] | None) -> str:
    """Format a rate: "0.912 (95% 0.850 to 0.960)"."""
    if value is None:
        return "unknown"
    known = f" (95% {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return f"{value:.3f}{known}"
