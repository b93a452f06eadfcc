"""Keep images in a run folder, so that an export can be validated and calibrated without the data.

    keep_images(run, dataset, split, seed=0)

``validation/`` and ``calibration/`` each hold image files and ``labels.json``, which lists each
file's class and group. No image is in both. ``calibration/`` is for INT8.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybrid_rt.images import decode, load_pixels
from hybrid_rt.spec import Preprocess
from hybrid_train.data.samples import Samples
from hybrid_train.data.splits import Indices, Split
from hybrid_train.provenance import write_json

if TYPE_CHECKING:  # hybrid-export reads this module before it imports PyTorch
    from hybrid_train.data.loader import ImageDataset

#: Folders of a run.
VALIDATION = "validation"
CALIBRATION = "calibration"
LABELS = "labels.json"

#: The most images that each keeps.
VALIDATION_IMAGES = 32
CALIBRATION_IMAGES = 64


def keep_images(run: Path, dataset: ImageDataset, split: Split, *, seed: int) -> None:
    """Write both folders; their earlier content is removed first.

    Validation images keep their original files, so that an export also checks decoding. For
    calibration only the pixels matter, so its images are PNG without the original's metadata.
    """
    samples = dataset.samples
    chosen = choose(samples, split.val, VALIDATION_IMAGES, seed)
    files = (as_it_is(samples.source(index)) for index in chosen)
    write_folder(run / VALIDATION, samples, chosen, files)
    checksums = np.array(samples.checksums)
    # Data may hold an image twice, under two names or in two of its own subsets.
    evaluated = np.isin(checksums[split.train], checksums[np.concatenate([split.val, split.test])])
    chosen = choose(samples, split.train[~evaluated], CALIBRATION_IMAGES, seed)
    files = (without_metadata(dataset, index) for index in chosen)
    write_folder(run / CALIBRATION, samples, chosen, files)


def choose(samples: Samples, indices: Indices, count: int, seed: int) -> list[int]:
    """Return up to ``count`` different images: classes in turn, the least used groups first.

    Equal seeds choose equal images in the same order. Images differ if their checksums differ.
    """
    order = np.random.default_rng([seed, 6]).permutation(indices)
    _, first = np.unique(np.array(samples.checksums)[order], return_index=True)
    order = order[np.sort(first)]  # one of those with equal pixels
    groups = samples.groups if samples.groups is not None else np.arange(len(samples))
    group = np.unique(groups, return_inverse=True)[1]
    taken = np.zeros(len(samples), np.int64)
    pools = [order[samples.labels[order] == c] for c in range(len(samples.classes))]
    chosen: list[int] = []
    while len(chosen) < count and any(map(len, pools)):
        for c, pool in enumerate(pools):
            if len(pool) and len(chosen) < count:
                best = int(taken[group[pool]].argmin())
                chosen.append(int(pool[best]))
                taken[group[pool[best]]] += 1
                pools[c] = np.delete(pool, best)
    return chosen


def write_folder(
    folder: Path, samples: Samples, chosen: list[int], files: Iterable[tuple[str, bytes]]
) -> None:
    """Write the files, numbered, and labels.json; no folder if there is no image."""
    shutil.rmtree(folder, ignore_errors=True)
    if not chosen:
        return
    folder.mkdir(parents=True)
    entries = []
    for number, (index, (suffix, content)) in enumerate(zip(chosen, files, strict=True)):
        name = f"{number:03}{suffix}"
        (folder / name).write_bytes(content)
        entries.append(
            {
                "file": name,
                "label": samples.classes[samples.labels[index]],
                "group": None if samples.groups is None else str(samples.groups[index]),
            }
        )
    write_json(folder / LABELS, entries)


def as_it_is(source: Any) -> tuple[str, bytes]:
    """Return suffix and content of an image's file; encoded content stays unchanged."""
    if isinstance(source, Path):
        return source.suffix.lower(), source.read_bytes()
    if isinstance(source, Image.Image):
        return ".png", png(source)
    suffix = ".png" if source[:4] == b"\x89PNG" else ".jpg" if source[:2] == b"\xff\xd8" else ""
    return suffix, source


def without_metadata(dataset: ImageDataset, index: int) -> tuple[str, bytes]:
    """Return suffix and content of a PNG without metadata, or the original file."""
    source = dataset.samples.source(index)
    content = same_pixels_png(source, dataset[index][0], dataset.preprocess)
    return as_it_is(source) if content is None else (".png", content)


def same_pixels_png(source: Any, pixels: NDArray[np.uint8], preprocess: Preprocess) -> bytes | None:
    """Return a PNG without metadata from which ``load_pixels`` loads exactly ``pixels``.

    The PNG holds the pixels themselves. If loading would crop or resize them again, it holds the
    complete image of ``source`` in 8 bits. None if neither has exactly the same pixels.
    """
    for image in (lambda: pixels, lambda: np.asarray(decode(source, preprocess))):
        content = png(Image.fromarray(image()))
        if np.array_equal(load_pixels(content, preprocess), pixels):
            return content
    return None


def png(image: Image.Image) -> bytes:
    """Return the image as the content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
