"""Draw a breast as an X-ray image: outline, fat, fibroglandular tissue, muscle, skin.

The chest wall is on the left of all images; coordinates are in units of the side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float32]


@dataclass(frozen=True)
class Anatomy:
    """One projection of one breast."""

    size: int
    density: int  # 0 (A, almost all fat) to 3 (D, extremely dense)
    view: str
    depth: float  # chest wall to nipple
    half_height: float
    centre: float  # the nipple's height
    radius: Field  # 0 on the chest wall behind the nipple, 1 on the skin
    muscle: Field  # share of pectoral muscle, 0 to 1


def random_anatomy(
    rng: np.random.Generator, size: int, density: int, view: str, build: tuple[float, float]
) -> Anatomy:
    """Draw the shape: CC is symmetric, MLO hangs and shows the pectoral muscle.

    ``build`` is the depth and the height of the patient's breasts, 0 to 1 each.
    """
    mlo = view == "MLO"
    deep, high = (float(np.clip(b + rng.normal(0, 0.1), 0, 1)) for b in build)
    depth = (0.5 + 0.28 * deep) * (0.95 if mlo else 1.0)
    half_height = (0.34 + 0.1 * high) * (1.12 if mlo else 1.0)
    centre = rng.uniform(0.54, 0.6) if mlo else rng.uniform(0.47, 0.53)
    x, y = _grid(size // 2)  # the outline is smooth: half the resolution is enough
    dy = y - np.float32(centre)
    # Below the nipple a breast is fuller than above it; in MLO markedly so.
    fullness = rng.uniform(1.15, 1.35) if mlo else rng.uniform(0.97, 1.05)
    above, below = half_height * (2 - fullness) + 0.08 * mlo, half_height
    height = np.where(dy < 0, np.float32(above), np.float32(below))
    angle = np.arctan2(dy / half_height, x / depth)
    # The outline is smooth: a look-up in a table of angles is exact enough, and faster.
    bins = np.linspace(-np.pi, np.pi, 1024)
    table = np.zeros(1024, np.float32)
    for k in (1, 2, 3, 5):
        table += rng.normal(0, 0.012) * np.cos(k * bins + rng.uniform(0, 2 * np.pi))
    wobble = table[((angle + np.pi) * (1023 / (2 * np.pi))).astype(np.intp)]
    power = rng.uniform(1.9, 2.25)
    radius = ((x / depth) ** power + np.abs(dy / height) ** 2.1) ** (1 / 2.05) + wobble
    if mlo:
        # The tail towards the armpit: the outline stays open at the upper chest wall.
        radius = radius - 0.35 * np.exp(-((x / 0.22) ** 2)) * np.clip(-dy * 2.2, 0, 1)
    # The nipple.
    nipple = np.exp(-(((x - depth) / 0.022) ** 2) - (dy / 0.02) ** 2)
    radius = radius - 0.05 * nipple
    muscle = np.zeros((size, size), np.float32)
    if mlo:
        wide, tall = rng.uniform(0.24, 0.36), rng.uniform(0.55, 0.8)
        bow = rng.uniform(-0.03, 0.05)
        edge = x / wide + y / tall - 1 - bow * np.sin(np.pi * np.clip(y / tall, 0, 1))
        muscle = _resized(_soft_step(-edge * 0.3, 0.008), size)
    return Anatomy(
        size,
        density,
        view,
        float(depth),
        float(half_height),
        float(centre),
        _resized(radius, size),
        muscle,
    )


def draw_breast(rng: np.random.Generator, anatomy: Anatomy) -> Field:
    """Return the brightness, 0 to 1, ``[size, size]``; it is 0 outside the breast."""
    size, radius = anatomy.size, anatomy.radius
    coarse = _resized(power_law_noise(rng, size // 2, exponent=3.4), size)
    fine = power_law_noise(rng, size, exponent=3.0)
    strands = _resized(power_law_noise(rng, size // 2, exponent=3.0), size)
    inside = _soft_step(1 - radius, 0.006)
    # Between two plates a breast has even thickness, except at its rim.
    squared = np.square(np.clip(radius, 0, 1))
    thickness = np.sqrt(1 - squared * squared * squared * np.sqrt(squared))
    gland = _glandular_share(rng, anatomy, coarse, fine)
    fat = 0.26 + 0.025 * fine + 0.02 * coarse
    # Ligaments and ducts are the ridges of a field stretched towards the nipple.
    ridges = np.exp(-((strands / 0.07) ** 2)) * (0.35 + 0.65 * gland)
    tissue = fat + gland * (0.27 + 0.035 * fine) + 0.055 * ridges
    muscle = rng.uniform(0.58, 0.74) + 0.03 * fine + 0.02 * coarse
    tissue = tissue * (1 - anatomy.muscle) + muscle * anatomy.muscle
    skin = 0.05 * np.exp(-(((radius - 0.985) / 0.012) ** 2))
    image = (tissue * (0.25 + 0.75 * thickness) + skin) * inside
    image = _add_benign_specks(rng, image, anatomy)
    return image.astype(np.float32)


def _glandular_share(
    rng: np.random.Generator, anatomy: Anatomy, coarse: Field, fine: Field
) -> Field:
    """Return the share of fibroglandular tissue at each place, by density category."""
    x, y = _grid(anatomy.size)
    level = (-1.5, -0.6, 0.35, 1.3)[anatomy.density] + rng.normal(0, 0.12)
    spread = (0.30, 0.36, 0.44, 0.55)[anatomy.density]
    cx = anatomy.depth * rng.uniform(0.45, 0.6)
    cy = anatomy.centre + rng.uniform(-0.06, 0.02)
    cone = ((x - cx) / (spread * anatomy.depth * 1.35)) ** 2
    cone = cone + ((y - cy) / (spread * anatomy.half_height * 2)) ** 2
    rim = np.clip((anatomy.radius - 0.8) / 0.2, 0, 1)  # fat lies under the skin
    score = level + 1.15 * coarse + 0.15 * fine + 1.2 * (1 - cone) - 4 * rim**2
    share: Field = 1 / (1 + np.exp(-np.clip(1.7 * score, -30, 30)))
    return share


def _add_benign_specks(rng: np.random.Generator, image: Field, anatomy: Anatomy) -> Field:
    """Add single benign calcifications, in healthy and diseased breasts alike."""
    for _ in range(int(rng.poisson(1.6))):
        row, column = place_inside(rng, anatomy, 0.85)
        radius = rng.uniform(1.2, 2.6) * anatomy.size / 512
        image = add_speck(image, row, column, radius, rng.uniform(0.35, 0.6))
    return image


def place_inside(
    rng: np.random.Generator, anatomy: Anatomy, limit: float, depth: float | None = None
) -> tuple[int, int]:
    """Return a place (row, column) inside ``radius < limit`` and outside the muscle.

    ``depth`` is the distance from the chest wall as a share of the way to the nipple: a finding is
    about equally deep in both views.
    """
    size = anatomy.size
    for attempt in range(200):
        share = rng.uniform(0.08, 0.9)
        if depth is not None and attempt < 100:
            share = depth + 0.06 * (2 * rng.random() - 1)
        row = int(rng.uniform(0.08, 0.92) * size)
        column = int(share * anatomy.depth * size)
        if anatomy.radius[row, column] < limit and anatomy.muscle[row, column] < 0.1:
            return row, column
    return int(anatomy.centre * size), int(anatomy.depth * 0.5 * size)


def add_speck(image: Field, row: int, column: int, radius: float, brightness: float) -> Field:
    """Add a small round bright grain to ``image`` in place, and return it."""
    reach = int(np.ceil(radius * 3))
    top, left = max(0, row - reach), max(0, column - reach)
    window = image[top : row + reach + 1, left : column + reach + 1]
    y = np.arange(window.shape[0], dtype=np.float32)[:, None] + top - row
    x = np.arange(window.shape[1], dtype=np.float32)[None, :] + left - column
    window += brightness * np.exp(-(((x**2 + y**2) / radius**2) ** 1.5))
    return image


def power_law_noise(rng: np.random.Generator, size: int, *, exponent: float) -> Field:
    """Return noise of mean 0 and variance 1 with power 1 / frequency**exponent."""
    from scipy.fft import irfft2  # keeps float32, which older NumPy widens

    amplitude = _amplitude(size, exponent)
    # Uniform components do: a sum of many of them is normal.
    components = rng.random((*amplitude.shape, 2), np.float32) - np.float32(0.5)
    spectrum = components.view(np.complex64)[..., 0]
    spectrum *= amplitude
    field: Field = irfft2(spectrum, (size, size), overwrite_x=True)
    field -= field.mean()
    field /= field.std()
    return field


@lru_cache(maxsize=8)
def _amplitude(size: int, exponent: float) -> Field:
    vertical = np.fft.fftfreq(size) * size  # cycles a side
    horizontal = np.fft.rfftfreq(size) * size
    squared = vertical[:, None] ** 2 + horizontal[None, :] ** 2
    # Flat below three cycles: a breast is not brighter on one side.
    amplitude = np.maximum(squared, 9.0) ** (-exponent / 4)
    # The inverse drops one of two components if a frequency is its own mirror image.
    amplitude[:, horizontal % (size / 2) == 0] *= np.sqrt(2)
    return amplitude.astype(np.float32)


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Field, Field]:
    """Return the x and the y of each place, ``[size, size]`` each."""
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    x: Field = np.tile(axis, (size, 1))
    return x, np.ascontiguousarray(x.T)


def _soft_step(x: NDArray[np.floating], width: float) -> Field:
    step: Field = 1 / (1 + np.exp(-np.clip(x / np.float32(width), -30, 30)))
    return step


def _resized(field: Field, size: int) -> Field:
    image = Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32)
