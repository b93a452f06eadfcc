"""From DATA to a finished run folder: split, train, calibrate, measure, report."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hybrid_rt.errors import DataError, UsageError
from hybrid_train.config import RunConfig, RunOptions
from hybrid_train.data.kept_images import CALIBRATION, VALIDATION
from hybrid_train.data.loader import ImageDataset
from hybrid_train.data.samples import Samples
from hybrid_train.data.sources import open_data
from hybrid_train.data.splits import Split, load_split, make_split, save_split, warnings_of
from hybrid_train.finalize import FITTED, finish
from hybrid_train.loop.distributed import join_processes
from hybrid_train.loop.epoch_log import Log
from hybrid_train.loop.optimizer import choose_precision
from hybrid_train.loop.trainer import Trainer
from hybrid_train.model.checkpoint import BEST, LAST
from hybrid_train.model.initialize import choose_start, make_model
from hybrid_train.provenance import write_json


def fit(options: RunOptions, config: RunConfig, log: Log) -> dict[str, Any] | None:
    """Train and write the run folder; the metrics, or None where Ctrl-C ended it.

    Raises UsageError, DataError, CheckpointError or TrainingError; what an earlier run left in
    the folder is then as it was.
    """
    with join_processes() as processes:
        options = replace(options, output=Path(processes.agree(str(options.output))))
        check_output(options)
        processes.barrier()  # all have looked before the first one writes
        config.batch_size_for(config.batch_size, processes.world)
        choose_precision(config.precision, processes.device)
        start = choose_start(
            config, weights=options.weights, pretrained=options.pretrained, given=options.given
        )
        say = log if processes.first else (lambda _: None)
        samples = open_data(options.data, options.data_options)
        say(describe(samples))
        dataset = ImageDataset(samples, start.preprocess)
        samples = decode_images(dataset, config, say, quiet=not processes.first)
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
        if "threshold" in options.given and len(samples.classes) > 2:
            say("warning: --threshold is not used: it separates two classes, and here are more")
        torch.manual_seed(config.seed)
        model, spec = make_model(samples, start, config)
        trainer = Trainer(model, spec, config, dataset, split, options.output, processes, say)
        if options.resume:
            trainer.resume()
            say(
                f"resuming in epoch {trainer.progress.epoch + 1}, batch {trainer.progress.step + 1}"
            )
        if processes.first:
            prepare_folder(options, config, samples, split)
        say(
            f"training {spec.vit.model} + {spec.cnn.model} at {start.preprocess.height} px on "
            f"{processes.device} in {trainer.precision}"
            + (f", {processes.world} processes" if processes.world > 1 else "")
        )
        if not trainer.run():
            say(f"stopped; go on with the same command and --resume ({options.output / LAST})")
            return None
        return finish(trainer, options.command, say)


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


def prepare_folder(options: RunOptions, config: RunConfig, samples: Samples, split: Split) -> None:
    output = options.output
    try:
        output.mkdir(parents=True, exist_ok=True)
        if options.overwrite and not options.resume:
            for name in (LAST, BEST, "metrics.json", "report.html", "split.json", *FITTED):
                (output / name).unlink(missing_ok=True)
            for name in (VALIDATION, CALIBRATION, "tensorboard"):
                shutil.rmtree(output / name, ignore_errors=True)
        save_split(output / "split.json", samples, split)
        write_json(output / "config.json", {"command": options.command, **config.to_dict()})
    except OSError as err:
        raise UsageError(f"cannot write to {output}: {err.strerror}") from err


def decode_images(
    dataset: ImageDataset, config: RunConfig, say: Log, *, quiet: bool = False
) -> Samples:
    """Decode all images if they fit the cache; leave bad ones out, or fail, as told."""
    say(f"decoding {len(dataset)} images")
    if not dataset.decode_all(config.cache_gib * 2**30, quiet=quiet):
        say(f"they need more than --cache-gib {config.cache_gib:g}: decoded again each epoch")
    if dataset.bad:
        first = list(dataset.bad.values())[:3]
        listing = "; ".join(first) + (" …" if len(dataset.bad) > 3 else "")
        if config.on_bad_image == "fail":
            raise DataError(
                f"{len(dataset.bad)} of {len(dataset)} images cannot be read: {listing}. "
                "Leave them out with --on-bad-image skip"
            )
        say(f"left out {len(dataset.bad)} images that cannot be read: {listing}")
        dataset.drop_bad()
    return dataset.samples


def describe(samples: Samples) -> str:
    counts = ", ".join(f"{name}: {n}" for name, n in samples.counts().items())
    text = f"{samples.origin}: {len(samples)} images for {samples.task!r} ({counts})"
    for reason, number in samples.dropped.items():
        text += f"; dropped {number} ({reason})"
    return text


def describe_split(samples: Samples, split: Split) -> str:
    lines = []
    for name, indices in split.subsets().items():
        text = f"{name} {len(indices)}"
        if samples.groups is not None:
            text += f" ({len(set(samples.groups[indices].tolist()))} by {samples.group_column})"
        lines.append(text)
    return "split: " + ", ".join(lines)
