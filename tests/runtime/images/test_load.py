"""Every kind of image decodes to the golden pixels, whatever it comes in."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid_rt.errors import ImageError
from hybrid_rt.images import decode, load_batch, load_pixels, prepare, source_name
from hybrid_rt.spec import Preprocess

DATA = Path(__file__).parents[2] / "assets"
GOLDEN = dict(np.load(DATA / "images.npz"))
NAMES = sorted(set(GOLDEN) - {"needs_plugin.dcm"})
SMALL = Preprocess(height=12, width=9)


def path_of(name: str) -> Path:
    return DATA / "images" / name


def float_range(name: str) -> tuple[float, float] | None:
    return (0, 1) if name == "float.tif" else None


def decoded(source: object, preprocess: Preprocess = SMALL, **options: object) -> np.ndarray:
    return np.asarray(decode(source, preprocess, **options))


def same(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape
    gap = int(np.abs(got.astype(int) - want).max())
    assert gap == 0, f"largest difference {gap} levels in {int((got != want).sum())} values"


def test_all_kinds_are_here():
    assert set(GOLDEN) == {p.name for p in (DATA / "images").iterdir()}
    suffixes = {Path(n).suffix for n in NAMES}
    assert suffixes == {".jpg", ".png", ".tif", ".webp", ".bmp", ".dcm"}


@pytest.mark.parametrize("name", NAMES)
def test_golden_pixels(name):
    image = decode(path_of(name), SMALL, float_range=float_range(name))
    same(np.asarray(image), GOLDEN[name])
    assert type(image) is Image.Image  # free of the file, and of EXIF data already applied
    assert image.info == {}


@pytest.mark.parametrize("name", NAMES)
def test_load_pixels_equals_decode_and_pillow_resize(name):
    pixels = load_pixels(path_of(name), SMALL, float_range=float_range(name))
    whole = Image.fromarray(GOLDEN[name]).convert("RGB")
    same(pixels, np.asarray(whole.resize((9, 12), Image.Resampling.BILINEAR)))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_pass_a_file_returns_the_same(name):
    path = path_of(name)
    data = path.read_bytes()
    options = {"float_range": float_range(name)}
    want = decoded(path, **options)
    sources = [str(path), data, bytearray(data), memoryview(data), io.BytesIO(data)]
    for source in sources:
        same(decoded(source, **options), want)
    with path.open("rb") as stream:
        same(decoded(stream, **options), want)
        assert not stream.closed


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith(".dcm")])
def test_load_pixels_of_an_opened_image_is_the_same(name):
    with Image.open(path_of(name)) as image:
        same(decoded(image, float_range=float_range(name)), GOLDEN[name])


def test_a_pipe_is_read():
    data = path_of("rgb.png").read_bytes()
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as stream:
        stream.write(data)
    try:
        same(decoded(f"/dev/fd/{read_end}"), GOLDEN["rgb.png"])
    finally:
        os.close(read_end)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_all_orientations(kind, orientation):
    # the eight ways to store an image, from the EXIF standard 2.32, 4.6.5.1.6
    upright = GOLDEN["rgb.png"]
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    data = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(stored))
    image.save(data, kind, exif=exif, **lossless.get(kind, {}))
    got = decoded(data.getvalue())
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).max() <= (4 if kind == "JPEG" else 0)


def test_a_decoded_image_is_not_turned_twice():
    image = decode(path_of("exif6.jpg"), SMALL)
    same(decoded(image), GOLDEN["exif6.jpg"])


def test_the_callers_image_stays_as_it_is():
    image = Image.open(path_of("exif6.png"))
    image.load()
    size, info = image.size, dict(image.info)
    load_pixels(image, SMALL)
    assert (image.size, image.info) == (size, info)
    grey = Image.new("L", (20, 20), 7)
    assert decode(grey, SMALL) is not grey


# ---- resizing ------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(224, 224), (31, 67), (500, 333), (8, 8)])
def test_stretch_equals_pillow_and_grey_equals_colour(interpolation, size):
    rng = np.random.default_rng(size)
    preprocess = Preprocess(height=size[0], width=size[1], interpolation=interpolation)
    resample = Image.Resampling[interpolation.upper()]
    for shape in [(97, 211), (300, 40), size, (1, 1), (1, 500)]:
        for channels in ((), (3,)):
            image = Image.fromarray(rng.integers(0, 256, shape + channels, dtype=np.uint8))
            want = image.convert("RGB").resize(size[::-1], resample)
            same(prepare(image, preprocess), np.asarray(want))


def test_stretch_equals_torchvision():
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision not installed")
    with Image.open(path_of("rgb.jpg")) as image:
        want = np.asarray(transforms.Resize((224, 224))(image.convert("RGB")))
    same(load_pixels(path_of("rgb.jpg"), Preprocess()), want)


def test_fit_pads_with_black_in_the_middle():
    white = Image.new("L", (100, 50), 255)
    pixels = prepare(white, Preprocess(height=40, width=40, resize="fit"))
    want = np.zeros((40, 40, 3), np.uint8)
    want[10:30] = 255
    same(pixels, want)
    thin = prepare(Image.new("RGB", (1000, 1), (9, 9, 9)), Preprocess(resize="fit"))
    assert sorted(np.unique(thin[:, 0, 0])) == [0, 9]
    assert (thin[112] == 9).all() or (thin[111] == 9).all()


def test_fill_scales_short_side_and_keeps_centre():
    image = np.zeros((60, 200), np.uint8)
    image[:, 70:130] = 200
    image[:, :70] = 90
    pixels = load_pixels(image, Preprocess(height=30, width=30, resize="fill"))
    assert (pixels[:, 1:-1] == 200).all()
    tall = load_pixels(np.arange(90, dtype=np.uint8)[:, None], Preprocess(resize="fill"))
    assert (tall == 44).all()  # a column of 90 pixels: the centre square is one pixel
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision not installed")
    rgb = decode(path_of("lossy.webp"), SMALL).resize((400, 300))
    torchvision_image = transforms.Compose([transforms.Resize(48), transforms.CenterCrop(48)])(rgb)
    ours = prepare(rgb, Preprocess(height=48, width=48, resize="fill"))
    gap = np.abs(ours.astype(int) - np.asarray(torchvision_image)).max()
    assert gap <= 1, f"largest difference to Resize + CenterCrop is {gap} levels"


def test_an_extreme_shape_costs_no_memory():
    ribbon = np.zeros((1, 2_000_000), np.uint8)
    for resize in ("stretch", "fit", "fill"):
        pixels = load_pixels(ribbon, Preprocess(height=64, width=64, resize=resize))
        assert pixels.shape == (64, 64, 3)


# ---- more than 8 bits ----------------------------------------------------------------------


def test_bytes_repeated_to_16_bits_come_back_exactly():
    bytes_ = np.arange(256, dtype=np.uint8).reshape(16, 16)
    same(decoded(bytes_.astype(np.uint16) * 257)[:, :], bytes_)
    data = io.BytesIO()
    Image.fromarray(bytes_.astype(np.uint16) * 257).save(data, "PNG")
    same(decoded(data.getvalue()), bytes_)


def test_16_bits_is_scaled_and_never_clipped():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    want = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256, axis=1)
    same(decoded(values), want)
    same(decoded(values.astype(">u2")), want)
    same(decoded(Image.fromarray(values)), want)


def test_minmax_uses_the_images_own_range():
    own = Preprocess(high_bit_depth="minmax")
    values = np.array([[1000, 1500], [2000, 1001]], np.uint16)
    same(decoded(values, own), np.array([[0, 128], [255, 0]], np.uint8))
    same(decoded(Image.fromarray(values), own), np.array([[0, 128], [255, 0]], np.uint8))
    same(decoded(np.full((2, 2), 77, np.uint16), own), np.zeros((2, 2), np.uint8))
    same(decoded(path_of("rgb.png"), own), GOLDEN["rgb.png"])  # 8 bits stay as they are
    grey = GOLDEN["float.tif"]
    same(decoded(path_of("float.tif"), own), np.rint(grey * (255 / 228)).astype(np.uint8))
    wide = decoded(path_of("int32.tif"), own)
    assert (wide.min(), wide.max()) == (0, 255)
    colour = decoded(path_of("rgb16.png"), own)
    assert (colour.min(), colour.max()) == (0, 255)


def test_pil_mode_i_does_not_say_its_range():
    image = Image.fromarray(np.full((4, 4), 70000, np.int32))
    with pytest.raises(ImageError, match=r"mode I has no known white.*uint16"):
        decode(image, SMALL)


# ---- arrays and tensors --------------------------------------------------------------------


def test_array_shapes():
    rgb = GOLDEN["rgb.png"]
    same(decoded(rgb), rgb)
    same(decoded(rgb[:, :, 0]), rgb[:, :, 0])
    same(decoded(rgb[:, :, :1]), rgb[:, :, 0])
    same(decoded(rgb[::-1, ::-2]), rgb[::-1, ::-2])  # any strides
    alpha = np.dstack([rgb, np.full(rgb.shape[:2], 51, np.uint8)])
    same(decoded(alpha), np.rint(rgb * 0.2).astype(np.uint8))
    read_only = rgb.copy()
    read_only.setflags(write=False)
    pixels = load_pixels(read_only, Preprocess(height=16, width=20))
    same(pixels, rgb)
    pixels[:] = 0  # the caller's to keep
    assert read_only.any()


def test_floats_need_the_range_they_have():
    grey = GOLDEN["grey.png"]
    floats = grey.astype(np.float32) / 255
    same(decoded(floats, float_range=(0, 1)), grey)
    same(decoded(floats.astype(np.float64) * 2 - 1, float_range=(-1, 1)), grey)
    same(decoded(floats.astype(np.float16), float_range=(0, 1)), grey)
    with pytest.raises(ImageError, match=r"array\[16x20\] float32: .*pass float_range=\(0, 1\)"):
        decode(floats, SMALL)
    with pytest.raises(ImageError, match=r"run from 0 to 228; expected 0 to 1"):
        decode(grey.astype(np.float32), SMALL, float_range=(0, 1))
    with pytest.raises(ImageError, match="NaN"):
        decode(np.where(floats > 0.5, np.nan, floats), SMALL, float_range=(0, 1))
    with pytest.raises(ImageError, match="infinity"):
        decode(np.where(floats > 0.5, np.inf, floats), Preprocess(high_bit_depth="minmax"))
    with pytest.raises(ImageError, match="leave float_range out"):
        decode(grey, SMALL, float_range=(0, 1))
    with pytest.raises(ImageError, match="leave float_range out"):
        decode(path_of("rgb.png"), SMALL, float_range=(0, 1))
    with pytest.raises(ImageError, match="low first"):
        decode(floats, SMALL, float_range=(1, 0))


def test_torch_tensors():
    torch = pytest.importorskip("torch", reason="torch not installed")
    rgb = GOLDEN["rgb.png"]
    tensor = torch.from_numpy(rgb.copy())
    same(decoded(tensor), rgb)
    with pytest.raises(ImageError, match=r"tensor\[3x16x20\] uint8: channels come first"):
        decode(tensor.permute(2, 0, 1), SMALL)
    floats = (tensor.float() / 255).requires_grad_()
    same(decoded(floats, float_range=(0, 1)), rgb)
    assert load_batch(tensor[None].repeat(3, 1, 1, 1), SMALL).shape == (3, 12, 9, 3)
    with pytest.raises(ImageError, match=r"bfloat16: its values could not be read"):
        decode(tensor.to(torch.bfloat16), SMALL)
    with pytest.raises(ImageError, match=r"meta|could not be read"):
        decode(torch.empty((4, 4), device="meta"), SMALL)


class OnGpu:
    """Behaves as a CuPy array: DLPack says CUDA, and ``get`` copies to the host."""

    def __init__(self, array: np.ndarray):
        self.__cuda_array_interface__ = {"version": 3}
        self._array, self.shape, self.dtype = array, array.shape, array.dtype

    def __dlpack__(self, **_: object) -> object:
        raise RuntimeError("the memory is on the GPU")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)  # kDLCUDA

    def get(self) -> np.ndarray:
        return self._array


def test_gpu_arrays_are_copied_by_their_own_library():
    rgb = GOLDEN["rgb.png"]
    same(decoded(OnGpu(rgb)), rgb)
    assert source_name(OnGpu(rgb)) == "tensor[16x20x3] uint8"


# ---- many ----------------------------------------------------------------------------------


def test_batches():
    paths = [path_of("rgb.png"), path_of("grey16.tif"), path_of("mono8.dcm")]
    batch = load_batch(paths, SMALL)
    assert batch.shape == (3, 12, 9, 3)
    for row, path in zip(batch, paths, strict=True):
        same(row, load_pixels(path, SMALL))
    same(load_batch(path_of("rgb.png"), SMALL)[0], batch[0])
    stack = np.stack([GOLDEN["rgb.png"]] * 4)
    same(load_batch(stack, SMALL), np.stack([batch[0]] * 4))
    same(load_batch(iter(paths), SMALL), batch)
    same(load_batch(np.array([str(p) for p in paths]), SMALL), batch)
    assert load_batch([], SMALL).shape == (0, 12, 9, 3)


def test_a_batch_names_the_bad_file():
    with pytest.raises(ImageError, match=r"image 1 of 3: .*nowhere\.png: no such file"):
        load_batch([path_of("rgb.png"), Path("nowhere.png"), path_of("rgb.png")], SMALL)


def test_threads_get_what_one_thread_gets():
    sources = [path_of(n) for n in NAMES if n != "float.tif"]
    want = [load_pixels(s, SMALL) for s in sources]
    failed: list[str] = []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(len(sources)):
            try:
                if not np.array_equal(load_pixels(sources[i], SMALL), want[i]):
                    failed.append(f"{sources[i].name}: other pixels")
            except Exception as err:  # a thread's exception would be lost
                failed.append(repr(err))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_source_names():
    assert source_name("scans/a.dcm") == "scans/a.dcm"
    assert source_name(Path("a.png")) == "a.png"
    assert source_name(b"123") == "<bytes>"
    assert source_name(np.zeros((512, 512), np.uint8)) == "array[512x512] uint8"
    assert source_name(Image.new("L", (3, 2))) == "<PIL L 3x2>"
    assert source_name(io.BytesIO()) == "<BytesIO>"
    with path_of("rgb.png").open("rb") as stream:
        assert source_name(stream).endswith("rgb.png")
