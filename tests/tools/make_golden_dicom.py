"""The DICOM half of make_golden.py: small files of every kind, and their pixels by PS3.3."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def dataset(pixels: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, **tags: object) -> Dataset:
    """Return a data set with ``pixels`` ([rows, columns] or [rows, columns, 3]) unchanged."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = SECONDARY_CAPTURE
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3.4"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    big = syntax == ExplicitVRBigEndian
    ds.PixelData = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    ds["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 and not big else "OW"
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return ds


def written(ds: Dataset) -> bytes:
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def item(**tags: object) -> Dataset:
    ds = Dataset()
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return ds


def lut_item(entries: np.ndarray, first: int, bits: int) -> Dataset:
    lut = Dataset()
    lut.add_new(0x00283002, "US", [len(entries) % 65536, first, bits])
    lut.add_new(0x00283006, "OW", entries.astype("<u2").tobytes())
    return lut


def to_255(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low to 0 and high to 255, rounded and clipped."""
    return np.clip(np.floor((values - low) * 255.0 / (high - low) + 0.5), 0, 255).astype(np.uint8)


def window(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """Apply the function LINEAR of PS3.3 C.11.2.1.2.1 with the output range 0 to 255."""
    out = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    out = np.where(values <= center - 0.5 - (width - 1) / 2, 0, out)
    out = np.where(values > center - 0.5 + (width - 1) / 2, 255, out)
    return np.floor(out + 0.5).astype(np.uint8)


def dicom_images(rgb: np.ndarray, wide: np.ndarray) -> dict[str, tuple[bytes, np.ndarray]]:
    """Return file name -> (file, decoded pixels)."""
    grey = (wide >> 8).astype(np.uint8)
    twelve = (wide >> 4).astype(np.uint16)  # 0..4095
    narrow = (wide // 64 + 300).astype(np.uint16)  # 300..1323
    signed = (twelve.astype(np.int32) - 1024).astype(np.int16)
    own = to_255(narrow.astype(float), 300, 1323)
    found: dict[str, tuple[bytes, np.ndarray]] = {}

    def add(name: str, ds: Dataset, expected: np.ndarray) -> None:
        found[name] = (written(ds), expected)

    add("mono8.dcm", dataset(grey), grey)
    add("no_window.dcm", dataset(narrow), own)
    add("monochrome1.dcm", dataset(narrow, PhotometricInterpretation="MONOCHROME1"), 255 - own)
    add("implicit.dcm", dataset(narrow, syntax=ImplicitVRLittleEndian), own)
    add("big_endian.dcm", dataset(narrow, syntax=ExplicitVRBigEndian), own)
    add("deflated.dcm", dataset(narrow, syntax=DeflatedExplicitVRLittleEndian), own)
    windowed = dataset(twelve, BitsStored=12, HighBit=11, WindowCenter=2000, WindowWidth=1500)
    add("window.dcm", windowed, window(twelve.astype(float), 2000, 1500))
    two = dataset(twelve, WindowCenter=[1000, 3000], WindowWidth=[800, 10])
    two.PhotometricInterpretation = "MONOCHROME1"
    add("two_windows.dcm", two, 255 - window(twelve.astype(float), 1000, 800))
    rescaled = dataset(signed, RescaleSlope="0.5", RescaleIntercept="-100")
    rescaled.WindowCenter, rescaled.WindowWidth = "40", "400"
    add("rescale_window.dcm", rescaled, window(signed * 0.5 - 100, 40, 400))
    exact = dataset(twelve, WindowCenter=2000, WindowWidth=1500, VOILUTFunction="LINEAR_EXACT")
    add("linear_exact.dcm", exact, to_255(twelve.astype(float), 1250, 2750))
    sigmoid = dataset(twelve, WindowCenter=2000, WindowWidth=1500, VOILUTFunction="SIGMOID")
    curve = 1 / (1 + np.exp(-4 * (twelve - 2000.0) / 1500))
    add("sigmoid.dcm", sigmoid, np.floor(curve * 255 + 0.5).astype(np.uint8))
    entries = (np.sqrt(np.arange(1000) / 999) * 1023).astype(np.uint16)
    voi = dataset(narrow, VOILUTSequence=[lut_item(entries, 310, 10)])
    voi.WindowCenter, voi.WindowWidth = 1, 1  # the LUT comes first
    looked_up = entries[np.clip(narrow.astype(int) - 310, 0, 999)]
    add("voi_lut.dcm", voi, to_255(looked_up.astype(float), 0, 1023))
    modality = dataset(narrow, ModalityLUTSequence=[lut_item(entries[::-1], 310, 10)])
    units = entries[::-1][np.clip(narrow.astype(int) - 310, 0, 999)].astype(float)
    add("modality_lut.dcm", modality, to_255(units, units.min(), units.max()))
    padded = np.where(twelve < 2000, -2000, signed).astype(np.int16)
    padding = dataset(padded)
    padding.add_new(0x00280120, "SS", -2000)
    inside = padded[padded != -2000]
    add("padding.dcm", padding, to_255(padded.astype(float), inside.min(), inside.max()))
    floats = dataset(wide)
    del floats.PixelData, floats.BitsStored, floats.HighBit, floats.PixelRepresentation
    floats.BitsAllocated, floats.FloatPixelData = 32, (wide / 7).astype("<f4").tobytes()
    add("float.dcm", floats, to_255((wide / 7).astype(np.float32).astype(float), 0, 65535 / 7))

    frames = np.stack([narrow, narrow[::-1]])
    several = dataset(narrow, NumberOfFrames=2)
    several.PixelData = frames.astype("<u2").tobytes()
    add("frames.dcm", several, own)
    enhanced = dataset(twelve, NumberOfFrames=2)
    enhanced.PixelData = np.stack([twelve, twelve]).astype("<u2").tobytes()
    enhanced.SharedFunctionalGroupsSequence = [
        item(PixelValueTransformationSequence=[item(RescaleSlope="2", RescaleIntercept="-5")])
    ]
    enhanced.PerFrameFunctionalGroupsSequence = [
        item(FrameVOILUTSequence=[item(WindowCenter=c, WindowWidth=3000)]) for c in (4000, 6000)
    ]
    add("enhanced.dcm", enhanced, window(twelve * 2.0 - 5, 4000, 3000))

    add("rgb.dcm", dataset(rgb), rgb)
    planes = dataset(rgb, PlanarConfiguration=1)
    planes.PixelData = np.ascontiguousarray(rgb.transpose(2, 0, 1)).tobytes()
    add("rgb_planes.dcm", planes, rgb)
    rgb16 = np.stack([wide, wide[::-1], wide[:, ::-1]], axis=2)
    add("rgb16.dcm", dataset(rgb16), (rgb16 >> 8).astype(np.uint8))
    y = np.full(wide.shape, 128, np.uint8)
    ybr = dataset(np.stack([grey, y, y], axis=2), PhotometricInterpretation="YBR_FULL")
    add("ybr_full.dcm", ybr, np.repeat(grey[:, :, None], 3, axis=2))
    palette = dataset((wide >> 12).astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    table = np.arange(16) * 4000
    for n, channel in enumerate(("Red", "Green", "Blue")):
        descriptor = f"{channel}PaletteColorLookupTableDescriptor"
        setattr(palette, descriptor, [16, 0, 16])
        palette[descriptor].VR = "US"
        values = np.roll(table, n).astype("<u2")
        setattr(palette, f"{channel}PaletteColorLookupTableData", values.tobytes())
    colours = np.stack([np.roll(table, n) for n in range(3)], axis=1)[wide >> 12]
    add("palette.dcm", palette, (colours >> 8).astype(np.uint8))

    rle = dataset(narrow)
    rle.compress(RLELossless, encoding_plugin="pydicom")
    assert RLELosslessEncoder.is_available
    add("rle.dcm", rle, own)
    jpeg = io.BytesIO()
    Image.fromarray(grey).save(jpeg, "JPEG", quality=95)
    baseline = dataset(grey, syntax=JPEGBaseline8Bit, WindowCenter=128, WindowWidth=256)
    baseline.PixelData = encapsulate([jpeg.getvalue()])
    lossy = np.asarray(Image.open(jpeg)).astype(float)
    add("jpeg_grey.dcm", baseline, window(lossy, 128, 256))
    colour_jpeg = io.BytesIO()
    Image.fromarray(rgb).save(colour_jpeg, "JPEG", quality=95)
    ybr_jpeg = dataset(rgb, syntax=JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422")
    ybr_jpeg.PixelData = encapsulate([colour_jpeg.getvalue()])
    add("jpeg_colour.dcm", ybr_jpeg, np.asarray(Image.open(colour_jpeg)))
    lossless = dataset(narrow, syntax=JPEGLosslessSV1)  # not decodable without a plug-in
    lossless.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    add("needs_plugin.dcm", lossless, np.zeros((0, 0), np.uint8))
    return found
