"""Bad images: a typed error that says what was passed, what was expected and what to do."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid_rt.errors import HybridError, ImageError
from hybrid_rt.images import MAX_PIXELS, as_sources, decode, load_pixels
from hybrid_rt.spec import Preprocess

IMAGES = Path(__file__).parents[2] / "assets" / "images"
GOLDEN = dict(np.load(IMAGES.parent / "images.npz"))
P = Preprocess(height=16, width=16)


def fails(source: object, match: str, **options: object) -> ImageError:
    with pytest.raises(ImageError, match=match) as caught:
        load_pixels(source, P, **options)
    assert isinstance(caught.value, HybridError)
    assert isinstance(caught.value, ValueError)
    return caught.value


def test_files_that_are_not_there(tmp_path):
    fails(tmp_path / "no.png", r"no\.png: no such file: check the path")
    fails(tmp_path, r"it is a folder; expected a JPEG.*name the files in it")
    fails("a\0b.png", "cannot be opened")
    fails("x" * 5000, "cannot be opened")


def test_an_empty_file(tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    fails(empty, r"empty\.jpg: it is empty \(0 bytes\); expected a JPEG.*fetch it again")
    fails(b"", "<bytes>: it is empty")
    fails(io.BytesIO(), "it is empty")


def test_text_under_a_image_name(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("this is no image")
    fails(text, r"notes\.png: it begins with b'this is ', which is no image.*convert it to PNG")


@pytest.mark.parametrize("kind", ["GIF", "PPM", "TGA", "ICO", "PDF"])
def test_kinds_that_are_not_read(kind):
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, kind)
    fails(data.getvalue(), "which is no image this reads; expected JPEG, PNG, TIFF, WebP, BMP")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_file_that_is_cut_off(name, share):
    data = (IMAGES / name).read_bytes()
    options = {"float_range": (0, 1)} if name == "float.tif" else {}
    cut = data[: int(len(data) * share)]
    # What is missing may be a check sum, a second frame or other data behind the image.
    behind = name.startswith(("animated", "pages")) or name.endswith(".png")
    if share > 0.4 and behind:
        with contextlib.suppress(ImageError):
            assert np.array_equal(np.asarray(decode(cut, P)), GOLDEN[name])
    else:
        fails(cut, "cut off|damaged|fetch it again|pip install|which is no image", **options)


def test_a_truncated_jpeg_names_the_file(tmp_path):
    image = Image.effect_noise((400, 300), 60)
    whole = tmp_path / "cut.jpg"
    image.save(whole)
    whole.write_bytes(whole.read_bytes()[:9000])
    error = fails(whole, r"cut\.jpg: it is damaged or cut off \(image file is truncated")
    assert "fetch or export it again" in str(error)
    with Image.open(whole) as opened:
        fails(opened, r"cut\.jpg: PIL cannot load it \(image file is truncated")


def test_a_header_of_a_bomb_is_refused_before_decoding():
    side = 20_000  # 400 million pixels, which deflate packs into nothing
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")):
        crc = zlib.crc32(name + content)
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)
    fails(data, r"20000x20000 = 400,000,000 pixels; expected at most 178,956,970: scale it down")


def test_large_images_raise_no_warning(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Image.open would refuse 201 pixels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = load_pixels(IMAGES / "rgb.png", P)
        load_pixels(IMAGES / "exif6.jpg", Preprocess(resize="fill", crop="breast"))
    assert pixels.shape == (16, 16, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    assert MAX_PIXELS == 178_956_970


def test_wrong_shapes():
    grey = np.zeros((16, 20), np.uint8)
    fails(np.zeros((3, 16, 20), np.uint8), r"channels come first.*x\.transpose\(1, 2, 0\)")
    fails(np.zeros((5, 16, 20), np.uint8), r"its last axis has 20 entries.*add a channel axis")
    fails(np.zeros((2, 3, 16, 20), np.uint8), r"x\.transpose\(0, 2, 3, 1\)")
    fails(np.zeros((2, 16, 20, 3), np.uint8), r"it holds 2 images")
    fails(grey[0], r"array\[20\] uint8: it has 1 axes; expected \[height, width\]")
    fails(np.zeros((0, 20), np.uint8), "it has no pixels")
    fails(np.zeros((16, 20, 2), np.uint8), "its last axis has 2 entries")


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.int64, bool, complex])
def test_wrong_types(dtype):
    fails(np.zeros((4, 4), dtype), "its values are .*; expected uint8 or uint16: convert")


def test_things_that_are_no_images():
    fails(17, "<int>: it is of type int; expected a path, bytes")
    fails(None, "it is of type NoneType")
    fails(io.StringIO("text"), "it returns text; expected bytes: open the file with mode 'rb'")
    with pytest.raises(ImageError, match="it is of type dict"):
        as_sources({"a": 1})


def test_frames():
    rgb = GOLDEN["rgb.png"]
    for name in ("pages.tif", "animated.webp", "animated.png"):
        second = np.asarray(decode(IMAGES / name, P, frame=1))
        assert np.array_equal(second, 255 - rgb), name
        fails(IMAGES / name, r"frame 2 was asked for and it has 2; expected 0 to 1", frame=2)
    fails(IMAGES / "rgb.jpg", "frame 1 was asked for and it has 1", frame=1)
    fails(rgb, "frame 1 was asked for and an array has one", frame=1)
    fails(IMAGES / "rgb.jpg", "frame is -1; expected 0 or more", frame=-1)


def test_a_float_tiff_says_how():
    fails(IMAGES / "float.tif", r"float\.tif: floating point.*float_range=\(0, 1\)")


def test_damaged_exif_does_not_spoil_the_image():
    data = (IMAGES / "exif6.jpg").read_bytes()
    start = data.index(b"Exif\0\0") + 6
    broken = data[:start] + b"\xff" * 8 + data[start + 8 :]
    assert load_pixels(broken, P).shape == (16, 16, 3)
