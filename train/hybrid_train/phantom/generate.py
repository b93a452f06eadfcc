"""Generate synthetic mammograms for demos, tests and benchmarks.

    python -m hybrid_train.phantom phantoms --patients 100 --preview page.png

Each patient has four images (left and right, CC and MLO). Rows have the columns and types of
the hub dataset hongrui/mammogram_v_1. A positive breast shows a lesion in both of its views and
differs from a negative one in nothing else. Equal seeds make equal images.

Parenchyma is noise whose power falls with the third power of the frequency, as measured in
mammograms by Burgess, Jacobson and Judy (Medical Physics 28, 2001).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_rt.errors import UsageError
from hybrid_train.phantom.anatomy import draw_breast, random_anatomy
from hybrid_train.phantom.lesion import Lesion, add_lesion, random_lesion

VIEWS = ("CC", "MLO")
DENSITIES = ("A", "B", "C", "D")
IMAGES_PER_PATIENT = 4
DEFAULT_IMAGES = 1600


def generate(
    patients: int,
    *,
    seed: int,
    start: int = 0,
    size: int = 512,
    difficulty: float = 1.0,
    prevalence: float = 0.35,
    nulls: bool = True,
    with_masks: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``patients`` patients, four each; ``image`` is a PIL image of mode L.

    Args:
        patients: The number of patients.
        seed: Equal seeds make equal images.
        start: The first patient's number. A patient is the same in any division of the work.
        size: Pixels a side, 64 or more.
        difficulty: Divides the lesions' contrast.
        prevalence: The share of breasts with a lesion.
        nulls: Leave some ages, densities and BIRADS empty, as in the hub dataset.
        with_masks: Add ``mask``, bool ``[size, size]``, true inside the lesion; ``box``, its
            (left, top, right, bottom) for Pillow's crop, or None; ``lesion``, its kind or None.

    Raises:
        UsageError: A number is out of range.
    """
    if patients < 0 or seed < 0 or size < 64 or not difficulty > 0 or not 0 <= prevalence <= 1:
        raise UsageError(
            f"patients={patients}, seed={seed}, size={size}, difficulty={difficulty}, "
            f"prevalence={prevalence}; expected 0 or more, 0 or more, 64 or more, above 0, 0 to 1"
        )
    for patient in range(start, start + patients):
        yield from _patient(patient, seed, size, difficulty, prevalence, nulls, with_masks)


def _patient(
    patient: int,
    seed: int,
    size: int,
    difficulty: float,
    prevalence: float,
    nulls: bool,
    with_masks: bool,
) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([seed, patient])
    density = int(rng.choice(4, p=(0.12, 0.4, 0.36, 0.12)))
    age = float(np.clip(rng.normal(58 - 2 * density, 10), 30, 90).round())
    implant = int(rng.random() < 0.02)
    build = (rng.random(), rng.random())
    missing = rng.random(3) < (0.05, 0.1, 0.4) if nulls else np.zeros(3, bool)
    for side in ("L", "R"):
        lesion = random_lesion(rng) if rng.random() < prevalence else None
        birads = _birads(rng, lesion)
        for view in VIEWS:
            # A generator for each image, so that a patient is the same at any size.
            number = 1 + 2 * "LR".index(side) + VIEWS.index(view)
            image_rng = np.random.default_rng([seed, patient, number])
            image, mask = _image(image_rng, size, density, build, side, view, lesion, difficulty)
            finding = "no finding" if lesion is None else lesion.kind
            row: dict[str, Any] = {
                "image": image,
                "patient_id": 10_000 + patient,
                "laterality": side,
                "view": view,
                "age": None if missing[0] else age,
                "cancer": int(lesion is not None),
                "invasive": int(lesion is not None and lesion.kind != "calcifications"),
                "implant": implant,
                "BIRADS": None if missing[2] else birads,
                "density": None if missing[1] else DENSITIES[density],
                "text": f"synthetic mammogram, {side} {view}, density {DENSITIES[density]}",
                "text2": finding,
            }
            if with_masks:
                kind = None if lesion is None else lesion.kind
                row |= {"mask": mask, "box": bounding_box(mask), "lesion": kind}
            yield row


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return (left, top, right, bottom), right and bottom excluded; None if all is false."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _birads(rng: np.random.Generator, lesion: Lesion | None) -> float:
    """Return 0 (needs more images), 1 (negative) or 2 (benign), as in the hub dataset."""
    if lesion is not None:
        return float(rng.choice(3, p=(0.9, 0.04, 0.06)))
    return float(rng.choice(3, p=(0.06, 0.8, 0.14)))


def _image(
    rng: np.random.Generator,
    size: int,
    density: int,
    build: tuple[float, float],
    side: str,
    view: str,
    lesion: Lesion | None,
    difficulty: float,
) -> tuple[Image.Image, NDArray[np.bool_]]:
    anatomy = random_anatomy(rng, size, density, view, build)
    tissue = draw_breast(rng, anatomy)
    # A generator of its own, so that a lesion changes no other random number.
    lesion_rng = np.random.default_rng(rng.integers(2**63))
    mask = np.zeros((size, size), bool)
    if lesion is not None:
        tissue, mask = add_lesion(lesion_rng, tissue, anatomy, lesion, 1 / difficulty)
    tissue *= np.float32(rng.uniform(0.92, 1.08))  # no two mammograms are exposed alike
    mammogram = np.clip(tissue, 0, 1) ** np.float32(1.15)
    grain = rng.random(mammogram.shape, np.float32) - np.float32(0.5)
    mammogram += np.float32(0.028) * grain * (mammogram > 0.01)
    pixels = (np.clip(mammogram, 0, 1) * 245).astype(np.uint8)
    if side == "R":  # the chest wall of a left breast is on the left
        pixels, mask = np.fliplr(pixels), np.fliplr(mask)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    _add_scan_marks(rng, image, side, view)
    return image, np.ascontiguousarray(mask)


def _add_scan_marks(rng: np.random.Generator, image: Image.Image, side: str, view: str) -> None:
    """Add a burned-in view label and a white border, as scans have, to some images."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    size = image.width
    if rng.random() < 0.3:
        text_size = max(10, size // 24)
        x = size * 0.84 if side == "L" else size * 0.03
        y = size * (0.04 + 0.05 * rng.random())
        draw.text((x, y), f"{side}{view}", fill=230, font=_label_font(text_size))
    if rng.random() < 0.2:
        width = int(rng.integers(2, max(3, size // 80)))
        edges = {
            "top": (0, 0, size, width),
            "bottom": (0, size - width, size, size),
            "outer": (size - width, 0, size, size) if side == "L" else (0, 0, width, size),
        }
        for box in edges.values():
            if rng.random() < 0.7:
                draw.rectangle(box, fill=245)


@lru_cache(maxsize=4)
def _label_font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def parse_phantom(data: str) -> int:
    """Return the number of patients of ``phantom``, or ``phantom:N`` with N images."""
    name, colon, count = data.partition(":")
    try:
        images = int(count) if colon else DEFAULT_IMAGES
    except ValueError:
        images = 0
    if name != "phantom" or images < IMAGES_PER_PATIENT:
        raise UsageError(
            f"{data!r}; expected phantom or phantom:N with N images, {IMAGES_PER_PATIENT} or more"
        )
    return -(-images // IMAGES_PER_PATIENT)
