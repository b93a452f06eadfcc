"""hybrid-predict: predictions for images, from the command line.

hybrid-predict model.onnx scans/ --format csv --output predictions.csv
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from hybrid_rt.backends.registry import BACKENDS
from hybrid_rt.errors import BackendError, HybridError, UsageError
from hybrid_rt.files import atomic_path
from hybrid_rt.images.sources import as_sources
from hybrid_rt.progress import print_above, progress
from hybrid_rt.results.writers import csv_lines, json_lines, jsonl_lines, text_lines
from hybrid_rt.uncertainty.decision import RuleArguments, parse_threshold

if TYPE_CHECKING:
    from hybrid_rt.engine import HybridEngine
    from hybrid_rt.results.prediction import Prediction, PredictionError

_EXAMPLE = """\
example:
  hybrid-predict model.onnx scan.dcm photos/ --format csv --output predictions.csv
  hybrid-predict model.onnx scan.dcm --coverage 0.9 --threshold 0.3 --abstain

exit codes: 0 done, 1 an image or the machine failed, 2 wrong usage or a bad model file
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = _parser().parse_intermixed_args(argv)  # options may stand among the IMAGEs
    try:
        return _run(args)
    except HybridError as err:
        if args.debug:
            traceback.print_exc()
        print(f"hybrid-predict: {err}", file=sys.stderr)
        return 1 if isinstance(err, BackendError) else 2
    except KeyboardInterrupt:
        print("hybrid-predict: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as head, has ended
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hybrid-predict",
        description="Classify images with an exported model.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="model.onnx, model.plan or a bundle's folder")
    add("images", metavar="IMAGE", nargs="*", help="image files, DICOM files, folders, globs")
    add("--format", choices=("table", "json", "jsonl", "csv"), default="table")
    add("--output", metavar="FILE", type=Path, help="write there, completely or not at all")
    add("--explain", metavar="DIR", type=Path, help="write heatmap overlays as PNG there")
    add(
        "--coverage",
        type=float,
        metavar="X",
        help="add a prediction set that covers the true label",
    )
    add(
        "--coverage-by",
        choices=("class", "image"),
        default="class",
        help="count it within each class or over all images (default: class)",
    )
    add("--threshold", metavar="X", help="decide at this probability, or CLASS=X")
    add("--abstain", action="store_true", help="no prediction for out-of-distribution images")
    add("--device", default="auto", help="auto, cpu or cuda:0 (default: auto)")
    add("--backend", choices=tuple(BACKENDS), help="default: chosen from the file and machine")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="for OpenVINO")
    add("--batch-size", type=int, default=8, metavar="N")
    add("--threads", type=int, metavar="N", help="threads of the inference library")
    add("--throughput", action="store_true", help="run batches side by side")
    add("--cache", action="store_true", help="let OpenVINO keep compiled models beside the file")
    add(
        "--rebuild", action="store_true", help="build the engine again if it is for another machine"
    )
    add("--float-range", type=float, nargs=2, metavar=("BLACK", "WHITE"), help="of float images")
    add("--selftest", action="store_true", help="run the bundle's golden images on this machine")
    add("--info", action="store_true", help="print what runs where, as JSON")
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def _run(args: argparse.Namespace) -> int:
    from hybrid_rt.engine import HybridEngine

    if not args.images and not args.selftest and not args.info:
        raise UsageError("no IMAGE given; expected image files, folders or globs after MODEL")
    paths = [Path(item) for image in args.images for item in as_sources(image).items]
    with HybridEngine(
        args.model,
        device=args.device,
        backend=args.backend,
        precision=args.precision,
        threads=args.threads,
        batch_size=args.batch_size,
        mode="throughput" if args.throughput else "latency",
        cache=args.cache,
        rebuild=args.rebuild,
    ) as engine:
        if args.info:
            print(json.dumps(engine.info, indent=2, ensure_ascii=False))
        if args.selftest:
            verdict = engine.selftest()
            print(verdict.text)
            if not verdict.passed:
                return 1
        return _predict(engine, paths, args) if paths else 0


def _predict(engine: HybridEngine, paths: list[Path], args: argparse.Namespace) -> int:
    failed: list[str] = []
    rules: RuleArguments = {
        "coverage": args.coverage,
        "coverage_by": args.coverage_by,
        "threshold": None if args.threshold is None else parse_threshold(args.threshold),
        "abstain": args.abstain,
    }
    asked = engine.rules(**rules)
    if asked.coverage is not None and asked.coverage.note:
        print(f"hybrid-predict: {asked.coverage.note}", file=sys.stderr)
    items = (_explained if args.explain else _predictions)(engine, paths, args, rules)
    watched = _reported(progress(items, len(paths), label="predict"), failed)
    optional = ["decision"] * (asked.point is not None)
    optional += ["prediction_set"] * (asked.coverage is not None)
    optional += ["ood_score", "is_ood"] * engine.detects_ood
    lines: dict[str, Callable[..., Iterator[str]]] = {
        "table": text_lines,
        "json": json_lines,
        "jsonl": jsonl_lines,
        "csv": functools.partial(csv_lines, optional=optional),
    }
    with _opened(args.output) as file:
        for line in lines[args.format](watched, engine.spec):
            file.write(line)
    if failed:
        print(f"hybrid-predict: {len(failed)} of {len(paths)} images failed", file=sys.stderr)
    return 1 if failed else 0


def _predictions(
    engine: HybridEngine, paths: list[Path], args: argparse.Namespace, rules: RuleArguments
) -> Iterator[Prediction | PredictionError]:
    return engine.stream(paths, float_range=_float_range(args), **rules)


def _explained(
    engine: HybridEngine, paths: list[Path], args: argparse.Namespace, rules: RuleArguments
) -> Iterator[Prediction | PredictionError]:
    from hybrid_rt.results.explanation import Explanation

    width = len(str(len(paths)))
    results = engine.stream_explained(paths, float_range=_float_range(args), **rules)
    for i, (path, item) in enumerate(zip(paths, results, strict=True)):
        if isinstance(item, Explanation):
            # Two folders may hold files of one name: the position keeps them apart.
            item.save(args.explain / f"{i + 1:0{width}d}_{path.stem}.png")
            yield item.prediction
        else:
            yield item


def _reported(
    items: Iterable[Prediction | PredictionError], failed: list[str]
) -> Iterator[Prediction | PredictionError]:
    from hybrid_rt.results.prediction import PredictionError

    for item in items:
        if isinstance(item, PredictionError):
            failed.append(item.source)
            print_above(f"hybrid-predict: {item.error}")
        yield item


def _float_range(args: argparse.Namespace) -> tuple[float, float] | None:
    return None if args.float_range is None else (args.float_range[0], args.float_range[1])


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    try:
        with atomic_path(output) as path, path.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as err:
        raise UsageError(f"{output} cannot be written ({err.strerror})") from err


if __name__ == "__main__":
    sys.exit(main())
