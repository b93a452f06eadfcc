"""hybrid-train: turn images and labels into a checkpoint, metrics and a report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import traceback
from pathlib import Path

from hybrid_rt.errors import HybridError, UsageError
from hybrid_train.arguments import make_parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; the help lists the codes."""
    args = make_parser().parse_args(argv)
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return train(args, f"{started_by()} {shlex.join(arguments)}")
    except HybridError as err:
        if args.debug:
            traceback.print_exc()
        print(f"hybrid-train: {one_line(err)}", file=sys.stderr)
        return 2 if isinstance(err, ValueError) else 1
    except OSError as err:
        if args.debug:
            traceback.print_exc()
        print(f"hybrid-train: {describe_os_error(err)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "hybrid-train: interrupted; saved files are complete: continue with --resume if an "
            "epoch was finished, else start again",
            file=sys.stderr,
        )
        return 130


def train(args: argparse.Namespace, command: str) -> int:
    """Check the options against each other and train."""
    from dataclasses import fields

    from hybrid_train.config import PRESETS, RunConfig, RunOptions
    from hybrid_train.data.samples import DataOptions
    from hybrid_train.run import fit

    known = {f.name for f in fields(RunConfig)}
    changes = {k: v for k, v in vars(args).items() if k in known and v is not None}
    config = PRESETS[args.preset].replace(**changes)
    if args.resume and args.output is None:
        raise UsageError("--resume without --output; name the folder of the run to continue")
    if args.resume and args.overwrite:
        raise UsageError("--resume continues a run and --overwrite replaces it; use one")
    if args.weights is not None and args.pretrained is not None:
        raise UsageError("--weights and --pretrained both set the start; use one")
    options = RunOptions(
        data=args.data,
        output=args.output or Path("runs") / time.strftime("%Y%m%d-%H%M%S"),
        data_options=DataOptions(
            label=args.label,
            group=args.group,
            image=args.image_column,
            null_label=args.null_label,
            class_names=args.class_names,
            seed=args.seed,
        ),
        resume=args.resume,
        overwrite=args.overwrite,
        weights=args.weights,
        given=frozenset(changes),
        pretrained=args.pretrained,
        command=command,
    )
    done = fit(options, config, lambda text: print(text, flush=True))
    return 130 if done is None and int(os.environ.get("RANK", "0")) == 0 else 0


def started_by() -> str:
    """Return how the command was started: directly, or by torchrun for several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return "hybrid-train"
    return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE')} -m hybrid_train"


def describe_os_error(err: OSError) -> str:
    """Return the message of an operating system error in one line."""
    import errno

    if err.errno == errno.ENOSPC:
        return (
            f"the disk is full ({err.filename}); the last checkpoint is complete: free space and "
            "use --resume"
        )
    return one_line(err)


def one_line(err: BaseException) -> str:
    """Return the error's message without line breaks."""
    return " ".join(str(err).split())


if __name__ == "__main__":
    sys.exit(main())
