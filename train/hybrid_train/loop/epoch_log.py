"""The log of a run: a line for each epoch, and TensorBoard's scalars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

Log = Callable[[str], None]


class EpochLog:
    """Lines to ``log``; scalars into the run folder's tensorboard/ within ``open``."""

    def __init__(self, folder: Path, epochs: int, log: Log) -> None:
        self.folder, self.epochs, self.log = folder, epochs, log
        self._writer: Any = None

    @contextmanager
    def open(self, next_epoch: int) -> Iterator[None]:
        """Open TensorBoard's log, and drop what an interrupted run wrote from ``next_epoch`` on."""
        self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=next_epoch)
        try:
            yield
        finally:
            self._writer.close()
            self._writer = None

    def write(self, row: dict[str, Any], better: bool) -> None:
        """Log a row of the history; ``better`` marks the best epoch so far."""
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, row["epoch"])
        auroc = row["val_auroc"]
        self.log(
            f"epoch {row['epoch']:>3}/{self.epochs}  "
            f"loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
            + (f"val AUROC {auroc:.4f}  " if auroc is not None else "")
            + f"val acc {row['val_accuracy']:.4f}  {row['images_per_s']:.0f} images/s"
            + (f" (waited {row['data_wait']:.0%} for data)" if row["data_wait"] > 0.05 else "")
            + ("  best" if better else "")
        )
