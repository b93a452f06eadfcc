"""Load images as tensors, batch by batch: the runtime's pixels, cached or decoded by workers.

Every random choice depends on (seed, epoch, batch) alone. A run can therefore resume in the
middle of an epoch, and two processes see the batches of one.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from hybrid_rt.errors import DataError, HybridError
from hybrid_rt.images import load_pixels
from hybrid_rt.spec import Preprocess
from hybrid_train.data.samples import Samples


class ImageDataset(Dataset[tuple[NDArray[np.uint8], int]]):
    """Pixels, uint8 ``[height, width, 3]``, and index of each sample, from load_pixels.

    The cache holds one channel as long as all images are grey.
    """

    def __init__(self, samples: Samples, preprocess: Preprocess) -> None:
        self.samples, self.preprocess = samples, preprocess
        self.cache: NDArray[np.uint8] | None = None
        self.bad: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        if self.cache is None:
            return self.load(index), index
        pixels = self.cache[index]
        if pixels.shape[-1] == 1:
            pixels = np.repeat(pixels, 3, axis=-1)
        return pixels, index

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None}  # for decoding workers, which never fill the cache

    def load(self, index: int) -> NDArray[np.uint8]:
        """Decode sample ``index``; the error names the image."""
        try:
            return load_pixels(self.samples.source(index), self.preprocess)
        except HybridError as err:
            raise DataError(f"{self.samples.names[index]}: {err}") from err

    def decode_all(self, cache_bytes: float, *, quiet: bool = False) -> bool:
        """Decode every image once; return True if all fit into ``cache_bytes`` and were kept.

        ``bad`` receives the errors of images that cannot be read, the samples a checksum of each
        other image. A terminal shows a bar unless ``quiet``.
        """
        checksums = [0] * len(self)
        bytes_each = self.preprocess.height * self.preprocess.width

        def one(index: int) -> None:
            try:
                pixels = self.load(index)
            except DataError as err:
                self.bad[index] = str(err)
                return
            checksums[index] = zlib.crc32(pixels.data)
            self._keep(index, pixels, cache_bytes)

        if bytes_each * len(self) <= cache_bytes:
            self.cache = np.zeros((len(self), *self._shape, 1), np.uint8)
        with ThreadPoolExecutor(available_cores()) as pool:
            done = pool.map(one, range(len(self)))
            for _ in tqdm(
                done, "decoding", len(self), leave=False, disable=True if quiet else None
            ):
                pass
        self.samples = replace(self.samples, checksums=tuple(checksums))
        return self.cache is not None

    @property
    def _shape(self) -> tuple[int, int]:
        return self.preprocess.height, self.preprocess.width

    def _keep(self, index: int, pixels: NDArray[np.uint8], cache_bytes: float) -> None:
        grey = bool((pixels == pixels[..., :1]).all())
        with self._lock:
            if self.cache is None:
                return
            if not grey and self.cache.shape[-1] == 1:
                # The first coloured image: from now on three channels, if they fit.
                fits = self.cache.nbytes * 3 <= cache_bytes
                self.cache = np.repeat(self.cache, 3, axis=-1) if fits else None
                if self.cache is None:
                    return
            self.cache[index] = pixels[..., : self.cache.shape[-1]]

    def drop_bad(self) -> None:
        """Leave out the images that decode_all could not read."""
        good = np.array([i for i in range(len(self)) if i not in self.bad], np.int64)
        self.samples = self.samples.take(good)
        if self.cache is not None:
            self.cache = self.cache[good]


class BatchPlan:
    """The samples of each batch of an epoch, for one of ``world`` processes.

    A global batch is dealt out in turn, so that all processes together see the batches of one.
    """

    def __init__(
        self,
        indices: NDArray[np.int64],
        labels: NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        balanced: bool = False,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.indices, self.labels = indices, labels
        self.batch_size, self.seed, self.balanced = batch_size, seed, balanced
        self.accumulate = accumulate
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        """Return the batches an epoch; an incomplete last one counts only if it is alone."""
        return max(1, len(self.indices) // self.batch_size)

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the global batches of an epoch."""
        rng = np.random.default_rng([self.seed, epoch, 1])
        if self.balanced:
            counts = np.bincount(self.labels[self.indices])
            weights = 1.0 / counts[self.labels[self.indices]]
            order = rng.choice(len(self.indices), len(self.indices), p=weights / weights.sum())
        else:
            order = rng.permutation(len(self.indices))
        size = self.batch_size
        return [self.indices[order[i * size : (i + 1) * size]] for i in range(len(self))]

    def group_size(self, batch: int) -> int:
        """Return the number of batches that are accumulated with the epoch's n-th."""
        first = batch - batch % self.accumulate
        return min(self.accumulate, len(self) - first)

    def ends_group(self, batch: int) -> bool:
        """Return whether the weights move after the epoch's n-th batch."""
        return (batch + 1) % self.accumulate == 0 or batch + 1 == len(self)

    def share(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's images of a global batch."""
        return batch[self.rank :: self.world]


class Loader:
    """A decoder of batches of sample indices; its worker processes live as long as it does."""

    def __init__(self, dataset: ImageDataset, *, workers: int, pin: bool) -> None:
        self._batches: list[list[int]] = []
        self._loader = DataLoader(
            dataset,
            batch_sampler=self,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
        )

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def load(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images uint8 ``[b, 3, height, width]``, indices) for each batch, in order."""
        self._batches = [batch.tolist() for batch in batches]
        yield from self._loader


def collate(items: list[tuple[NDArray[np.uint8], int]]) -> tuple[Tensor, Tensor]:
    """Stack the images of a batch as ``[b, 3, height, width]``, and their indices."""
    images = torch.from_numpy(np.stack([image for image, _ in items]))  # [b, h, w, 3]
    indices = torch.tensor([index for _, index in items])
    return images.permute(0, 3, 1, 2), indices  # NHWC -> NCHW


def available_cores() -> int:
    """Return this process's share of the cores, divided among torchrun's processes."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // local)
