"""One process, or several under torchrun with torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray


@dataclass(frozen=True)
class Processes:
    """The rank of this process, their number, and the device of this one."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and the log."""
        return self.rank == 0

    def gather(self, rows: NDArray[Any], indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return the rows of all processes, ordered by ``indices``; each process passes its own."""
        if self.world == 1:
            return rows[np.argsort(indices, kind="stable")]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, (rows, indices))
        order = np.argsort(np.concatenate([i for _, i in gathered]), kind="stable")
        return np.concatenate([r for r, _ in gathered])[order]

    def sum(self, *values: float) -> tuple[float, ...]:
        """Return the sum of each value over the processes."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return tuple(total.tolist())

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def agree(self, value: str) -> str:
        """Return the first process's value."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return self.sum(float(flag))[0] > 0


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the group that torchrun started; without torchrun there is one process."""
    cuda = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world == 1:
        yield Processes(0, 1, device)
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(rank, world, device)
    finally:
        dist.destroy_process_group()
