"""Make tests/assets/images/ and tests/assets/images.npz: one small file of every kind of image
hybrid_rt reads, and what it should decode to.

Run from the repository root:  python tests/tools/make_golden.py

The expected pixels are computed here from the arrays the files are made of, by the rules of
docs/images.md written out once more, without hybrid_rt. Only for lossy files are they what
Pillow's own opener decodes.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from make_golden_dicom import dicom_images

ASSETS = Path(__file__).parents[1] / "assets"
HEIGHT, WIDTH = 16, 20


def rgb8() -> np.ndarray:
    """Return a colour image whose corners differ, which shows every turn and flip."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [y * 16, x * 12, (x * y) % 256]
    return np.stack(planes, axis=2).astype(np.uint8)


def grey16() -> np.ndarray:
    """Return values over the full 16-bit range, most of them no multiple of 256."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return ((y * WIDTH + x) * 65535 // (HEIGHT * WIDTH - 1)).astype(np.uint16)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(raw: np.ndarray, colour_type: int) -> bytes:
    """Write 16 bits per channel, as Pillow cannot in colour (PNG specification, 2nd edition)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = raw.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in raw)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    pieces = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*piece) for piece in pieces)


def tiff(
    data: bytes,
    *,
    bits: int,
    sample_format: int = 1,
    photometric: int = 1,
    samples: int = 1,
    orientation: int = 1,
    big: bool = False,
) -> bytes:
    """Write one uncompressed strip (TIFF 6.0)."""
    order = ">" if big else "<"
    short, long = 3, 4
    tags = [
        (256, long, [WIDTH]),
        (257, long, [HEIGHT]),
        (258, short, [bits] * samples),
        (259, short, [1]),
        (262, short, [photometric]),
        (273, long, [0]),  # the strip's place, filled in below
        (274, short, [orientation]),
        (277, short, [samples]),
        (278, long, [HEIGHT]),
        (279, long, [len(data)]),
        (339, short, [sample_format] * samples),
    ]
    extra_at = 8 + 2 + 12 * len(tags) + 4
    extra = struct.pack(order + "6H", *([bits] * 3 + [sample_format] * 3))
    out = (b"MM" if big else b"II") + struct.pack(order + "HIH", 42, 8, len(tags))
    for tag, kind, values in tags:
        out += struct.pack(order + "HHI", tag, kind, len(values))
        if tag == 273:
            out += struct.pack(order + "I", extra_at + len(extra))
        elif len(values) == 3:
            out += struct.pack(order + "I", extra_at + (0 if tag == 258 else 6))
        elif kind == short:
            out += struct.pack(order + "HH", values[0], 0)
        else:
            out += struct.pack(order + "I", values[0])
    return out + b"\0\0\0\0" + extra + data


def packed12(values: np.ndarray) -> bytes:
    """Pack two 12-bit values into three bytes; each row begins with a new byte."""
    a, b = values[:, ::2].astype(np.uint32), values[:, 1::2].astype(np.uint32)
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=2).astype(np.uint8).tobytes()


def over_black(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return round(colour * alpha / 255); for integers no result lies on a half."""
    shape = alpha.shape + (1,) * (colour.ndim - 2)
    return np.rint(colour * (alpha.reshape(shape) / 255.0)).astype(np.uint8)


def file_images() -> dict[str, tuple[bytes, np.ndarray]]:
    """Return file name -> (file, decoded pixels)."""
    rgb, wide = rgb8(), grey16()
    grey = np.ascontiguousarray(rgb[:, :, 1])
    grey[0, 0] = 200
    alpha = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
    image, grey_image = Image.fromarray(rgb), Image.fromarray(grey)
    high = (wide >> 8).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    found: dict[str, tuple[bytes, np.ndarray]] = {}

    def add(name: str, data: bytes, expected: np.ndarray) -> None:
        found[name] = (data, expected)

    def opened(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    jpeg = encoded(image, "JPEG", quality=90)
    add("rgb.jpg", jpeg, opened(jpeg))
    jpeg = encoded(image, "JPEG", quality=90, progressive=True)
    add("progressive.jpg", jpeg, opened(jpeg))
    jpeg = encoded(image.convert("CMYK"), "JPEG", quality=95)
    add("cmyk.jpg", jpeg, opened(jpeg))
    jpeg = encoded(grey_image, "JPEG", quality=90)
    add("grey.jpg", jpeg, opened(jpeg)[:, :, 0])
    jpeg = encoded(image, "JPEG", quality=90, exif=exif)
    add("exif6.jpg", jpeg, np.rot90(opened(jpeg), -1))

    add("rgb.png", encoded(image, "PNG"), rgb)
    add("grey.png", encoded(grey_image, "PNG"), grey)
    add("exif6.png", encoded(image, "PNG", exif=exif), np.rot90(rgb, -1))
    bits = grey > 100
    add("one_bit.png", encoded(Image.fromarray(bits), "PNG"), bits * np.uint8(255))
    add("grey16.png", png(wide, 0), high)
    rgb16 = np.stack([wide, wide[::-1], wide[:, ::-1]], axis=2)
    add("rgb16.png", png(rgb16, 2), (rgb16 >> 8).astype(np.uint8))
    add("rgba.png", encoded(rgba, "PNG"), over_black(rgb, alpha))
    grey_alpha = Image.merge("LA", [grey_image, Image.fromarray(alpha)])
    add("grey_alpha.png", encoded(grey_alpha, "PNG"), over_black(grey, alpha))
    index = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 7).astype(np.uint8)
    colours = np.arange(21).reshape(7, 3).astype(np.uint8) * 12
    palette = Image.fromarray(index)
    palette.putpalette(colours.tobytes())
    add("palette.png", encoded(palette, "PNG"), colours[index])
    clear = bytes([0, 128, 255, 255, 255, 255, 64])
    see_through = over_black(colours[index], np.frombuffer(clear, np.uint8)[index])
    add("palette_alpha.png", encoded(palette, "PNG", transparency=clear), see_through)
    key = np.where(grey == 200, 0, grey).astype(np.uint8)
    add("grey_key.png", encoded(grey_image, "PNG", transparency=200), key)
    second = Image.fromarray(255 - rgb)
    animated = {"save_all": True, "append_images": [second]}
    add("animated.png", encoded(image, "PNG", **animated), rgb)

    add("grey8.tif", encoded(grey_image, "TIFF"), grey)
    add("rgb_lzw.tif", encoded(image, "TIFF", compression="tiff_lzw"), rgb)
    add("rgba.tif", encoded(rgba, "TIFF"), over_black(rgb, alpha))
    add("pages.tif", encoded(image, "TIFF", **animated), rgb)
    add("grey16.tif", encoded(Image.fromarray(wide), "TIFF"), high)
    lzw = encoded(Image.fromarray(wide), "TIFF", compression="tiff_lzw")
    add("grey16_lzw.tif", lzw, high)
    add("grey16_big.tif", tiff(wide.astype(">u2").tobytes(), bits=16, big=True), high)
    negative = tiff((65535 - wide).astype("<u2").tobytes(), bits=16, photometric=0)
    add("grey16_white_is_zero.tif", negative, high)
    add("grey12.tif", tiff(packed12(wide >> 4), bits=12), high)
    signed = (wide.astype(np.int64) - 32768).astype("<i2")
    add("int16.tif", tiff(signed.tobytes(), bits=16, sample_format=2), high)
    wide32 = wide.astype(np.uint64) * 65537
    add("uint32.tif", tiff(wide32.astype("<u4").tobytes(), bits=32), high)
    signed32 = (wide32.astype(np.int64) - 2**31).astype("<i4")
    add("int32.tif", tiff(signed32.tobytes(), bits=32, sample_format=2), high)
    rgb16_tiff = tiff(rgb16.astype("<u2").tobytes(), bits=16, samples=3, photometric=2)
    add("rgb16.tif", rgb16_tiff, (rgb16 >> 8).astype(np.uint8))
    turned = tiff(grey.tobytes(), bits=8, orientation=6)
    add("orientation6.tif", turned, np.rot90(grey, -1))
    floats = (grey / np.float32(255)).astype("<f4")  # to be read with float_range=(0, 1)
    add("float.tif", tiff(floats.tobytes(), bits=32, sample_format=3), grey)

    add("lossless.webp", encoded(image, "WEBP", lossless=True), rgb)
    webp = encoded(image, "WEBP", quality=80)
    add("lossy.webp", webp, opened(webp))
    webp = encoded(rgba, "WEBP", lossless=True, exact=True)
    add("rgba.webp", webp, over_black(rgb, alpha))
    add("animated.webp", encoded(image, "WEBP", lossless=True, **animated), rgb)
    add("exif6.webp", encoded(image, "WEBP", lossless=True, exif=exif), np.rot90(rgb, -1))

    add("rgb.bmp", encoded(image, "BMP"), rgb)
    add("grey.bmp", encoded(grey_image, "BMP"), grey)
    return found


def main() -> int:
    folder = ASSETS / "images"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    images = {**file_images(), **dicom_images(rgb8(), grey16())}
    for name, (data, _) in images.items():
        (folder / name).write_bytes(data)
    expected = {name: np.ascontiguousarray(pixels) for name, (_, pixels) in images.items()}
    np.savez_compressed(ASSETS / "images.npz", **expected)
    size = sum(len(data) for data, _ in images.values())
    print(f"{len(images)} images, {size:,} bytes, in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
