"""as_sources: one image or many, decided in one place."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid_rt.errors import ImageError
from hybrid_rt.images import as_sources, load_batch, source_name
from hybrid_rt.spec import Preprocess

SMALL = Preprocess(height=12, width=9)


@pytest.fixture
def folder(tmp_path):
    """Images b/c/x.png and b/y.png; a hidden one and a text file that are no images."""
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for place in ("b/c/x.png", "b/y.png", ".hidden/z.png"):
        Image.new("RGB", (20, 16), "red").save(tmp_path / place)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    return tmp_path


def one_images(folder):
    """A source of each kind that is one image."""
    path = folder / "b" / "y.png"
    pydicom = pytest.importorskip("pydicom")
    return [
        path,
        str(path),
        "nowhere.png",
        "https://example.org/a.png?size=2",
        path.read_bytes(),
        bytearray(path.read_bytes()),
        io.BytesIO(path.read_bytes()),
        Image.new("RGB", (20, 16)),
        pydicom.Dataset(),
        np.zeros((16, 20), np.uint8),
        np.zeros((16, 20, 3), np.uint8),
        np.zeros((2, 3, 16, 20), np.uint8),  # channels second: reading it raises the error
    ]


def test_as_sources_of_one_image(folder):
    for source in one_images(folder):
        found = as_sources(source)
        assert found.is_one, source
        (item,) = found.items
        assert item is source


def test_as_sources_of_many_images(folder):
    path = folder / "b" / "y.png"
    stack = np.zeros((4, 16, 20, 3), np.uint8)
    many = [[path], (path, path), {path}, iter([path]), [], stack, np.array([str(path)] * 2)]
    counts = [1, 2, 1, 1, 0, 4, 2]
    for source, count in zip(many, counts, strict=True):
        found = as_sources(source)
        assert not found.is_one, source
        assert len(list(found.items)) == count


def test_as_sources_of_a_tensor_stack():
    torch = pytest.importorskip("torch", reason="torch not installed")
    found = as_sources(torch.zeros((4, 16, 20, 3), dtype=torch.uint8))
    assert not found.is_one
    assert len(list(found.items)) == 4
    with pytest.raises(ImageError, match=r"tensor\[1x4x4x3\] bfloat16: its values could not"):
        as_sources(torch.zeros((1, 4, 4, 3), dtype=torch.bfloat16))


def test_as_sources_is_lazy_with_iterators():
    endless = iter(int, 1)
    assert as_sources(endless).items is endless


@pytest.mark.parametrize("kind", [str, Path])
def test_as_sources_of_a_folder_or_glob(folder, kind):
    expected = [folder / "b/c/x.png", folder / "b/y.png"]
    for pattern in (folder, folder / "b", folder / "**" / "*.png"):
        found = as_sources(kind(pattern))
        assert not found.is_one
        assert found.items == expected
    assert list(as_sources(kind(folder / "b" / "?.png")).items) == expected[1:]


def test_as_sources_takes_a_name_with_brackets(folder):
    path = folder / "scan[1].png"
    (folder / "b" / "y.png").rename(path)
    assert as_sources(path) == ([path], True)


def test_as_sources_keeps_folders_in_a_list(folder):
    assert list(as_sources([folder]).items) == [folder]
    with pytest.raises(ImageError, match="it is a folder"):
        load_batch([folder], SMALL)


def test_as_sources_errors(tmp_path):
    with pytest.raises(ImageError, match="holds no images; expected files such as"):
        as_sources(tmp_path)
    with pytest.raises(ImageError, match="matches no file; check the pattern"):
        as_sources(str(tmp_path / "*.png"))
    for wrong in ({"a.png": 1}, 3, None):
        with pytest.raises(ImageError, match=f"it is of type {type(wrong).__name__}; expected"):
            as_sources(wrong)


def test_as_sources_of_an_impossible_path():
    long = "a" * 5000 + ".png"
    assert as_sources(long).is_one
    with pytest.raises(ImageError, match="cannot be opened"):
        load_batch(long, SMALL)


def test_load_batch_takes_folders(folder):
    assert load_batch(folder / "b", SMALL).shape == (2, 12, 9, 3)


def test_source_name_with_an_index(tmp_path):
    assert source_name(tmp_path, 3) == str(tmp_path)
    assert source_name(b"12", 3) == "<bytes> #3"
