"""Run a training: open the data, split, train, finish the run folder."""

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
    """Train and write the run folder.

    Args:
        options: The data, the start and the output of the run.
        config: The settings of the run.
        log: Called with each line of the log.

    Returns:
        The metrics; None if Ctrl-C ended the run, and in all processes but the first.

    Raises:
        UsageError, DataError, CheckpointError, TrainingError: An earlier run in the folder is
            left as it was.
    """
    with join_processes() as processes:
        options = replace(options, output=Path(processes.agree(str(options.output))))
        check_output(options)
        processes.barrier()  # all have checked before the first one writes
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
            say("warning: --threshold is not used: it needs two classes, and the data has more")
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
            say(f"stopped; continue with the same command and --resume ({options.output / LAST})")
            return None
        return finish(trainer, options.command, say)


def check_output(options: RunOptions) -> None:
    """Raise UsageError if the output holds an earlier run that may not be changed."""
    output = options.output
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is a file; expected a folder")
    there = [name for name in (BEST, LAST, "metrics.json") if (output / name).exists()]
    if there and not (options.resume or options.overwrite):
        raise UsageError(
            f"{output} holds a run already ({there[0]}); use --resume to continue, --overwrite to "
            "replace it, or another --output"
        )


def prepare_folder(options: RunOptions, config: RunConfig, samples: Samples, split: Split) -> None:
    """Make the run folder and write split.json and config.json."""
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
    """Decode all images, cache them if they fit, and leave out or refuse bad ones."""
    say(f"decoding {len(dataset)} images")
    if not dataset.decode_all(config.cache_gib * 2**30, quiet=quiet):
        say(f"images need more than --cache-gib {config.cache_gib:g}: decoded again each epoch")
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
    """Return the samples' origin and counts in one line."""
    counts = ", ".join(f"{name}: {n}" for name, n in samples.counts().items())
    text = f"{samples.origin}: {len(samples)} images for {samples.task!r} ({counts})"
    for reason, number in samples.dropped.items():
        text += f"; dropped {number} ({reason})"
    return text


def describe_split(samples: Samples, split: Split) -> str:
    """Return the size of each subset in one line."""
    lines = []
    for name, indices in split.subsets().items():
        text = f"{name} {len(indices)}"
        if samples.groups is not None:
            text += f" ({len(set(samples.groups[indices].tolist()))} by {samples.group_column})"
        lines.append(text)
    return "split: " + ", ".join(lines)
