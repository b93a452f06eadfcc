"""From DATA to a finished run folder: split, train, calibrate, measure, report."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hybrid_rt.errors import DataError, UsageError
from hybrid_rt.files import atomic_path
from hybrid_rt.spec import Head, ModelSpec, Preprocess
from hybrid_train import metrics
from hybrid_train.calibration import fit_temperature
from hybrid_train.checkpoint import BEST, LAST, load_into, load_state, save_checkpoint
from hybrid_train.config import TrainConfig
from hybrid_train.data import DataOptions, Samples, open_data
from hybrid_train.model import HybridClassifier, describe_branches
from hybrid_train.operating import choose_operating_point
from hybrid_train.optimization import restore_prior
from hybrid_train.pictures import Pictures
from hybrid_train.pretrained import load_pretrained
from hybrid_train.processes import Processes, join_processes
from hybrid_train.splits import Split, load_split, make_split, save_split, warnings_of
from hybrid_train.trainer import Trainer

Log = Callable[[str], None]

#: How many validation pictures a run keeps, so that an export can be verified without the data.
KEPT_PICTURES = 32


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run is started with, beside its settings."""

    data: str
    output: Path
    data_options: DataOptions
    resume: bool = False
    overwrite: bool = False
    weights: Path | None = None
    #: Whether an image size was asked for; else a checkpoint keeps its own.
    size_given: bool = False
    #: None: random weights. Empty: timm's from the hub. Else files, ViT first.
    pretrained: Sequence[Path] | None = None
    command: str = ""


def fit(options: RunOptions, config: TrainConfig, log: Log) -> dict[str, Any] | None:
    """Train and write the run folder; the metrics, or None where Ctrl-C ended it.

    Raises UsageError, DataError, CheckpointError or TrainingError; what an earlier run left in
    the folder is then as it was.
    """
    with join_processes() as processes:
        options = replace(options, output=Path(processes.agree(str(options.output))))
        check_output(options)
        processes.barrier()  # all have looked before the first one writes
        if config.batch_size % processes.world:
            raise UsageError(
                f"--batch-size {config.batch_size} cannot be dealt to {processes.world} processes"
            )
        say = log if processes.first else (lambda _: None)
        samples = open_data(options.data, options.data_options)
        say(describe(samples))
        preprocess = choose_preprocess(options, config)
        pictures = Pictures(samples, preprocess)
        samples = read_pictures(pictures, config, say)
        split_file = options.output / "split.json"
        if options.resume and split_file.is_file():
            split = load_split(split_file, samples)
        else:
            split = make_split(
                samples,
                val_fraction=config.val_fraction,
                test_fraction=config.test_fraction,
                seed=config.seed,
            )
        say(describe_split(samples, split))
        for note in warnings_of(samples, split):
            say(f"warning: {note}")
        torch.manual_seed(config.seed)
        model, spec = make_model(samples, preprocess, config, options)
        if processes.first:
            prepare_folder(options, config, samples, split)
        trainer = Trainer(model, spec, config, pictures, split, options.output, processes, say)
        if options.resume:
            trainer.resume()
            say(
                f"resuming in epoch {trainer.progress.epoch + 1}, batch {trainer.progress.step + 1}"
            )
        say(
            f"training {spec.vit.model} + {spec.cnn.model} at {preprocess.height} px on "
            f"{processes.device} in {trainer.precision}"
            + (f", {processes.world} processes" if processes.world > 1 else "")
        )
        if not trainer.run():
            say(f"stopped; go on with the same command and --resume ({options.output / LAST})")
            return None
        return finish(trainer, samples, split, options, processes, say)


def choose_preprocess(options: RunOptions, config: TrainConfig) -> Preprocess:
    """The settings', or a given checkpoint's own where no size was asked for."""
    if options.weights is not None and not options.size_given:
        return load_state(options.weights)[1].preprocess
    size = config.image_size
    return Preprocess(height=size, width=size, resize=config.resize, crop=config.crop)


def check_output(options: RunOptions) -> None:
    """Refuse to write over an earlier run unless told to."""
    output = options.output
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is a file; expected a folder")
    there = [name for name in (BEST, LAST, "metrics.json") if (output / name).exists()]
    if there and not (options.resume or options.overwrite):
        raise UsageError(
            f"{output} holds a run already ({there[0]}); use --resume to go on, --overwrite to "
            "replace it, or another --output"
        )


def prepare_folder(
    options: RunOptions, config: TrainConfig, samples: Samples, split: Split
) -> None:
    output = options.output
    try:
        output.mkdir(parents=True, exist_ok=True)
        if options.overwrite and not options.resume:
            for name in (LAST, BEST, "metrics.json", "report.html", "split.json"):
                (output / name).unlink(missing_ok=True)
            for name in ("validation", "tensorboard"):
                shutil.rmtree(output / name, ignore_errors=True)
        save_split(output / "split.json", samples, split)
        write_json(output / "config.json", {"command": options.command, **config.to_dict()})
    except OSError as err:
        raise UsageError(f"cannot write to {output}: {err.strerror}") from err


def read_pictures(pictures: Pictures, config: TrainConfig, say: Log) -> Samples:
    """Decode all pictures if they fit the cache; leave bad ones out, or fail, as told."""
    say(f"decoding {len(pictures)} pictures")
    if not pictures.decode_all(config.cache_gib * 2**30):
        say(f"they need more than --cache-gib {config.cache_gib:g}: decoded again each epoch")
    if pictures.bad:
        first = list(pictures.bad.values())[:3]
        listing = "; ".join(first) + (" …" if len(pictures.bad) > 3 else "")
        if config.on_bad_image == "fail":
            raise DataError(
                f"{len(pictures.bad)} of {len(pictures)} pictures cannot be read: {listing}. "
                "Leave them out with --on-bad-image skip"
            )
        say(f"left out {len(pictures.bad)} pictures that cannot be read: {listing}")
        pictures.drop_bad()
    return pictures.samples


def make_model(
    samples: Samples, preprocess: Preprocess, config: TrainConfig, options: RunOptions
) -> tuple[HybridClassifier, ModelSpec]:
    """A new network, with the weights that were asked for, and the spec it is trained under."""
    origin = {
        "data": samples.origin,
        "data_fingerprint": samples.fingerprint(),
        "seed": config.seed,
        "commit": git_commit(),
        "versions": versions(),
    }
    if options.weights is not None:
        state, old = load_state(options.weights)
        if len(old.classes) != len(samples.classes):
            state = {n: t for n, t in state.items() if not n.startswith("head.")}
        spec = old.replace(
            classes=samples.classes,
            preprocess=preprocess,
            task=samples.task,
            temperature=1.0,
            operating_point=None,
            provenance={**origin, "weights": str(options.weights)},
        )
        model = HybridClassifier(spec)
        head = {n: t for n, t in model.state_dict().items() if n.startswith("head.")}
        load_into(model, {**head, **state}, options.weights)
        return model, spec
    size = (config.image_size, config.image_size)
    vit, cnn = describe_branches(
        config.vit, config.cnn, size, timm_norm=options.pretrained is not None
    )
    spec = ModelSpec(
        classes=samples.classes,
        preprocess=preprocess,
        vit=vit,
        cnn=cnn,
        head=Head(hidden=config.hidden, dropout=config.dropout),
        task=samples.task,
        provenance=origin,
    )
    model = HybridClassifier(spec)
    if options.pretrained is not None:
        load_pretrained(model, spec, options.pretrained)
    return model, spec


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
    from hybrid_train.summary import write_run_report

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


def describe(samples: Samples) -> str:
    counts = ", ".join(f"{name}: {n}" for name, n in samples.counts().items())
    text = f"{samples.origin}: {len(samples)} pictures for {samples.task!r} ({counts})"
    for reason, number in samples.dropped.items():
        text += f"; dropped {number} ({reason})"
    return text


def describe_split(samples: Samples, split: Split) -> str:
    parts = []
    for name, indices in split.parts().items():
        text = f"{name} {len(indices)}"
        if samples.groups is not None:
            text += f" ({len(set(samples.groups[indices].tolist()))} by {samples.group_column})"
        parts.append(text)
    return "split: " + ", ".join(parts)


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


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("hybrid-rt", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def git_commit() -> str | None:
    """The commit of the sources, where they are a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def write_json(path: Path, data: Any) -> None:
    with atomic_path(path) as part:
        part.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
