"""The real images that exported files are judged on, or that INT8 is calibrated on.

DATA is a folder of images, a folder of class folders, or a parquet file (or a folder of them).
By default what the run kept: ``validation/`` to judge on (else built-in synthetic mammograms) and
``calibration/`` to calibrate on.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from hybrid_rt.bundle.golden import GoldenImages, pixels_digest
from hybrid_rt.errors import DataError, HybridError, UsageError
from hybrid_rt.images import load_pixels
from hybrid_rt.spec import ModelSpec, Preprocess
from hybrid_train.data.kept_images import LABELS, same_pixels_png

#: Enough to see a wrong graph; each costs half a second a file on two CPU cores at full size.
DEFAULT_LIMIT = 32

_T = TypeVar("_T")

#: Folders of a run that hold images, see hybrid_train.data.kept_images.
Kept = Literal["validation", "calibration"]

_GOLDEN_COUNT = 8
_GOLDEN_BYTES = 1 << 20  # larger originals are stored in a smaller form, see _golden_encoding
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".dcm", ".dicom"})
_BUILTIN_SEED = 20240731


@dataclass(frozen=True, kw_only=True)
class VerificationSet:
    """Images ready for the network, and their labels if they are known.

    ``pixels`` is uint8 ``[n, height, width, 3]``; ``labels[i]`` is an index into the spec's
    classes or None.
    """

    origin: str
    names: tuple[str, ...]
    encoded: tuple[bytes, ...]
    labels: tuple[int | None, ...]
    pixels: NDArray[np.uint8]
    #: The first image's file, if it is one.
    example: Path | None = None

    def __len__(self) -> int:
        return len(self.names)

    def first(self, count: int) -> VerificationSet:
        """Return the first ``count`` images."""
        return replace(
            self,
            names=self.names[:count],
            encoded=self.encoded[:count],
            labels=self.labels[:count],
            pixels=self.pixels[:count],
        )


@dataclass(frozen=True)
class _Item:
    name: str
    data: Path | bytes
    label: str | None = None


def load_verification(
    data: str | Path, spec: ModelSpec, *, limit: int = DEFAULT_LIMIT
) -> VerificationSet:
    """Return up to ``limit`` images of DATA, spread evenly over it and over its classes.

    Raises DataError if there is no image; an unreadable image is an ImageError that names it.
    """
    path = Path(data)
    if not path.exists():
        raise DataError(f"{path} does not exist; expected a folder of images or a parquet file")
    items = _items(path, spec)
    if not items:
        raise DataError(
            f"{path} has no images; expected a folder of images, a folder of class folders or "
            f"parquet files with an image column"
        )
    return _read(str(path), _spread(items, limit), spec)


def chosen_images(
    data: str | None, checkpoint: Path, kept: Kept, spec: ModelSpec, *, limit: int
) -> VerificationSet | None:
    """Return images of DATA, else those that the run of ``checkpoint`` kept; None if none."""
    folder = Path(data) if data is not None else kept_folder(checkpoint, kept)
    return None if folder is None else load_verification(folder, spec, limit=limit)


def kept_folder(checkpoint: Path, kept: Kept) -> Path | None:
    """Return the folder of images that the trainer kept for a run folder or a checkpoint in it."""
    folder = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / kept
    return folder if (folder / LABELS).is_file() else None


def check_calibration(checkpoint: Path | None, calibrate: str | None) -> None:
    """Raise UsageError if INT8 has no images to be calibrated on, before any work and any PyTorch.

    Accepts None (the newest run, which is not known yet) and a path that does not exist: loading
    the checkpoint has the better message.
    """
    if calibrate is None and checkpoint is not None and checkpoint.exists():
        if kept_folder(checkpoint, "calibration") is not None:
            return
        raise UsageError(
            f"--int8 needs images to measure the range of every layer on, and {checkpoint} came "
            "without them: it is a bare checkpoint, or a run of an older hybrid-train. Add "
            "--calibrate DATA, a few dozen training images, or train again"
        )


def builtin_images(spec: ModelSpec, *, count: int = 12) -> VerificationSet:
    """Return synthetic mammograms, for a checkpoint that came without images."""
    from hybrid_train.phantom import generate

    items: list[_Item] = []
    for row in islice(generate(-(-count // 2), seed=_BUILTIN_SEED), count):
        buffer = io.BytesIO()
        row["image"].save(buffer, format="PNG")
        items.append(_Item(f"phantom-{len(items)}.png", buffer.getvalue()))
    return _read("built-in phantoms", items, spec)


def golden_images(
    images: VerificationSet, outputs: dict[str, NDArray[np.float32]], preprocess: Preprocess
) -> GoldenImages:
    """Return a few of the images with PyTorch's outputs, for the bundle."""
    chosen = _even(range(len(images)), _GOLDEN_COUNT)
    encoded = (_golden_encoding(images.encoded[i], images.pixels[i], preprocess) for i in chosen)
    rows = np.array(chosen)
    return GoldenImages(
        names=tuple(images.names[i] for i in chosen),
        encoded=tuple(encoded),
        pixels_sha256=tuple(pixels_digest(images.pixels[i]) for i in chosen),
        logits=outputs["logits"][rows],
        probabilities=outputs["probabilities"][rows],
        features=outputs["features"][rows],
    )


def _golden_encoding(data: bytes, pixels: NDArray[np.uint8], preprocess: Preprocess) -> bytes:
    """Return the smallest encoding of an image that still decodes to exactly these pixels."""
    if len(data) <= _GOLDEN_BYTES:
        return data
    smaller = same_pixels_png(data, pixels, preprocess)
    return data if smaller is None or len(smaller) >= len(data) else smaller


def _read(origin: str, items: Sequence[_Item], spec: ModelSpec) -> VerificationSet:
    encoded, pixels = [], []
    for item in items:
        encoded.append(item.data if isinstance(item.data, bytes) else item.data.read_bytes())
        try:
            source = encoded[-1] if isinstance(item.data, bytes) else item.data
            pixels.append(load_pixels(source, spec.preprocess))
        except HybridError as err:
            raise type(err)(f"{origin}: {item.name}: {err}") from err
    classes = {name: i for i, name in enumerate(spec.classes)}
    if spec.classes == (f"no {spec.task}", spec.task):  # how training names a column of 0 and 1
        classes |= {"0": 0, "1": 1}
    return VerificationSet(
        origin=origin,
        names=tuple(item.name for item in items),
        encoded=tuple(encoded),
        labels=tuple(None if i.label is None else classes.get(i.label) for i in items),
        pixels=np.stack(pixels),
        example=next((item.data for item in items if isinstance(item.data, Path)), None),
    )


def _items(path: Path, spec: ModelSpec) -> list[_Item]:
    if path.is_file():
        parquet = path.suffix.lower() == ".parquet"
        return list(_parquet_items([path], spec)) if parquet else [_Item(path.name, path)]
    listed = path / LABELS
    if listed.is_file():
        return _listed_items(listed)
    tables = sorted(p for p in path.rglob("*.parquet") if p.is_file())
    if tables:
        return list(_parquet_items(tables, spec))
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in _SUFFIXES)
    return [
        _Item(str(p.relative_to(path)), p, p.parent.name if p.parent != path else None)
        for p in files
    ]


def _listed_items(listed: Path) -> list[_Item]:
    """Return images that the trainer kept: labels.json names each file's class."""
    try:
        rows = json.loads(listed.read_text(encoding="utf-8"))
        return [
            _Item(row["file"], listed.parent / Path(row["file"]).name, row.get("label"))
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(
            f"{listed} is not a list of file and label ({err!r}); train again, or pass "
            "--verify DATA or --calibrate DATA"
        ) from err


def _parquet_items(tables: Iterable[Path], spec: ModelSpec) -> Iterator[_Item]:
    """Yield rows with an ``image`` column; the label is the column that the spec's task names."""
    import pyarrow.parquet as pq

    for table in tables:
        try:
            file = pq.ParquetFile(table)
            names = file.schema_arrow.names
            if "image" not in names:
                raise DataError(f"{table} has no image column; it has {', '.join(names)}")
            columns = ["image", *([spec.task] if spec.task in names else [])]
            row = 0
            for batch in file.iter_batches(batch_size=64, columns=columns):
                for record in batch.to_pylist():
                    image, label = record["image"], record.get(spec.task)
                    data = image.get("bytes") if isinstance(image, dict) else image
                    if data:
                        yield _Item(f"{table.name}[{row}]", data, _class_name(label))
                    row += 1
        except (OSError, ValueError) as err:
            if isinstance(err, HybridError):
                raise
            raise DataError(f"{table} cannot be read as parquet: {err}") from err


def _class_name(label: object) -> str | None:
    if label is None or label != label:
        return None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label)


def _spread(items: Sequence[_Item], limit: int) -> list[_Item]:
    """Return ``limit`` items: as even over the labels as they allow, then over their order."""
    groups: dict[str | None, list[_Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    sizes = dict.fromkeys(groups, 0)
    for _ in range(min(limit, len(items))):
        open_groups = [g for g in groups if sizes[g] < len(groups[g])]
        sizes[min(open_groups, key=lambda g: sizes[g])] += 1
    chosen = [_even(members, sizes[g]) for g, members in groups.items()]
    return [item for row in zip_longest(*chosen) for item in row if item is not None]


def _even(items: Sequence[_T], count: int) -> list[_T]:
    if len(items) <= count:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, count).round()]
