"""Samples from tables: parquet files and hub datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_rt.errors import DataError
from hybrid_train.data.columns import Table, find_column, samples_of
from hybrid_train.data.samples import SPLIT_FOLDERS, DataOptions, Samples

IMAGE_COLUMNS = ("image", "img")


def open_parquet(files: Sequence[Path], origin: str, options: DataOptions) -> Samples:
    """Open parquet files with a column of encoded images, or of paths beside the files."""
    import datasets

    try:
        with quiet_datasets():
            table = datasets.load_dataset(
                "parquet", data_files=[str(f) for f in files], split="train"
            )
    except Exception as err:  # pyarrow and datasets have no common error for damaged files
        raise DataError(
            f"{origin} cannot be read as parquet ({type(err).__name__}: {last_line(err)}); "
            "copy it again"
        ) from err
    path = Path(origin)
    folder = path if path.is_dir() else path.parent
    return open_dataset(table, origin, options, folder=folder)


def open_hub(name: str, options: DataOptions) -> Samples:
    """Open a dataset of the Hugging Face hub by name, with all its splits."""
    import datasets

    try:
        with quiet_datasets():
            splits = datasets.load_dataset(name)
    except Exception as err:  # offline, unknown or gated: the library's errors have no common root
        raise DataError(
            f"{name} cannot be downloaded from the Hugging Face hub ({type(err).__name__}: "
            f"{last_line(err)}), and no folder has that name; download its parquet files on a "
            "machine with a network, and pass their folder instead: "
            f"hybrid-train path/to/{name.split('/')[1]}"
        ) from err
    table = datasets.concatenate_datasets(list(splits.values()))
    subsets = [SPLIT_FOLDERS.get(name, "") for name in splits]
    given = None
    if len(subsets) > 1 and "train" in subsets and all(subsets):
        given = np.repeat(subsets, [len(splits[name]) for name in splits])
    return open_dataset(table, name, options, given_split=given)


def open_dataset(
    dataset: Any,
    origin: str,
    options: DataOptions,
    *,
    given_split: Any = None,
    folder: Path | None = None,
) -> Samples:
    """Open a Dataset of the ``datasets`` library; relative paths in it are of ``folder``."""
    import datasets

    image = find_column("image", options.image, IMAGE_COLUMNS, dataset.column_names, origin)
    if isinstance(dataset.features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    prefix = Path(origin).stem

    def read(column: str) -> Sequence[Any]:
        feature = dataset.features[column]
        cells = list(dataset[column])
        if isinstance(feature, datasets.ClassLabel):
            return [None if v is None or v < 0 else feature.int2str(v) for v in cells]
        return cells

    table = Table(
        origin=origin,
        columns=dataset.column_names,
        read=read,
        source=DatasetImages(dataset, image, prefix, folder),
        name=lambda row: f"{prefix}-{row:06}",
        given_split=given_split,
    )
    return samples_of(table, options)


@dataclass(frozen=True)
class DatasetImages:
    """The image of a row; a class, so that decoding workers can unpickle it."""

    dataset: Any
    image: str
    prefix: str
    folder: Path | None

    def __call__(self, row: int) -> Any:
        cell = self.dataset[row][self.image]
        return encoded_image(cell, f"{self.prefix} row {row}", self.folder)


def encoded_image(cell: Any, name: str, folder: Path | None) -> Any:
    """Return the content of an image cell: bytes, or the path of a file."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, str):
        return Path(cell) if folder is None else folder / cell  # an absolute path stays itself
    raise DataError(f"{name} holds {type(cell).__name__}; expected an encoded image or a path")


def last_line(err: BaseException) -> str:
    """Return the error's last line."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (lines[-1] if lines else type(err).__name__)[:200]


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Switch the library's progress bars off within the block."""
    from datasets.utils import logging

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()
