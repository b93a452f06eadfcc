"""Lesions: a soft mass, a spiculated mass, a cluster of microcalcifications."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_train.phantom.anatomy import Anatomy, Field, add_speck, place_inside

KINDS = ("mass", "spiculated mass", "calcifications")


@dataclass(frozen=True)
class Lesion:
    """A finding in both views of a breast.

    ``radius`` is in pixels of a 512-pixel image, ``depth`` the share of the way from the chest
    wall to the nipple.
    """

    kind: str
    radius: float
    contrast: float
    depth: float


def random_lesion(rng: np.random.Generator) -> Lesion:
    """Draw kind, size, conspicuity and depth."""
    kind = KINDS[int(rng.choice(3, p=(0.35, 0.4, 0.25)))]
    radius = rng.uniform(18, 34) if kind == "calcifications" else rng.uniform(15, 30)
    return Lesion(kind, radius, rng.uniform(0.8, 1.2), rng.uniform(0.15, 0.8))


def add_lesion(
    rng: np.random.Generator, tissue: Field, anatomy: Anatomy, lesion: Lesion, contrast: float
) -> tuple[Field, NDArray[np.bool_]]:
    """Return the image with the lesion at a random height, and its mask ``[size, size]``."""
    size = anatomy.size
    row, column = place_inside(rng, anatomy, 0.72, lesion.depth)
    radius = lesion.radius * size / 512
    strength = lesion.contrast * contrast
    # Nothing of a lesion reaches further than its longest spicule.
    reach = int(radius * 3) + 1
    rows = slice(max(0, row - reach), min(size, row + reach + 1))
    columns = slice(max(0, column - reach), min(size, column + reach + 1))
    y, x = np.mgrid[rows, columns].astype(np.float32)
    dx, dy = x - column, y - row
    distance = np.hypot(dx, dy)
    mask = np.zeros((size, size), bool)
    tissue = tissue.copy()
    if lesion.kind == "calcifications":
        tissue[rows, columns] += 0.1 * strength * np.exp(-((distance / radius) ** 2))
        _add_grains(rng, tissue, row, column, radius, strength)
        mask[rows, columns] = distance < radius * 1.1
        return tissue, mask
    angle = np.arctan2(dy, dx)
    outline = radius * (1 + _ripple(rng, angle, 0.09 if lesion.kind == "mass" else 0.14))
    soft = radius * (0.16 if lesion.kind == "mass" else 0.12)
    body = 1 / (1 + np.exp(np.clip((distance - outline) / soft, -30, 30)))
    # A sphere is thickest in its middle.
    dome = 0.6 + 0.4 * np.sqrt(np.clip(1 - (distance / (outline * 1.1)) ** 2, 0, 1))
    added = (0.31 if lesion.kind == "mass" else 0.32) * body * dome
    if lesion.kind == "spiculated mass":
        added = np.maximum(added, _spicules(rng, dx, dy, radius))
    tissue[rows, columns] += strength * added
    mask[rows, columns] = distance < outline * 1.15
    return tissue, mask


def _ripple(rng: np.random.Generator, angle: Field, amount: float) -> Field:
    """Return an irregular outline: a few harmonics of the angle."""
    return sum(
        (
            rng.normal(0, amount / k**0.5) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
            for k in (2, 3, 4, 5)
        ),
        np.zeros_like(angle),
    ).astype(np.float32)


def _spicules(rng: np.random.Generator, dx: Field, dy: Field, radius: float) -> Field:
    """Return thin straight strands that leave the core in all directions and fade."""
    strands = np.zeros_like(dx)
    count = int(rng.integers(12, 20))
    for k in range(count):
        direction = 2 * np.pi * (k + rng.uniform(-0.3, 0.3)) / count
        length = radius * rng.uniform(1.7, 2.8)
        width = radius * rng.uniform(0.055, 0.1)
        cos, sin = np.float32(np.cos(direction)), np.float32(np.sin(direction))
        along, across = dx * cos + dy * sin, dy * cos - dx * sin
        fade = np.clip(1 - along / length, 0, 1) * (along > 0)
        strand = 0.26 * fade * np.exp(-((across / width) ** 2))
        strands = np.maximum(strands, strand)
    return strands


def _add_grains(
    rng: np.random.Generator, tissue: Field, row: int, column: int, radius: float, strength: float
) -> None:
    """Add bright grains of unequal size, within about ``radius``, to ``tissue`` in place."""
    size = len(tissue)
    for _ in range(int(rng.integers(18, 34))):
        r = int(np.clip(row + rng.normal(0, radius * 0.45), 2, size - 3))
        c = int(np.clip(column + rng.normal(0, radius * 0.45), 2, size - 3))
        grain = rng.uniform(1.1, 2.4) * size / 512
        add_speck(tissue, r, c, grain, float(rng.uniform(0.3, 0.5)) * strength)
