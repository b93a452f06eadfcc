"""The training loop: resumable to the bit, equal on one process and on many."""

from __future__ import annotations

import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from tqdm import tqdm

from hybrid_rt.errors import TrainingError, UsageError
from hybrid_rt.spec import ModelSpec
from hybrid_train.config import RunConfig
from hybrid_train.data.loader import BatchPlan, ImageDataset, Loader, available_cores
from hybrid_train.data.splits import Split
from hybrid_train.evaluation import metrics
from hybrid_train.loop.distributed import Processes
from hybrid_train.loop.epoch_log import EpochLog, Log
from hybrid_train.loop.interrupt import StopRequest
from hybrid_train.loop.optimizer import autocast, choose_precision, exact, freeze_batchnorm
from hybrid_train.loop.resume import Progress, load_training_state, save_training_state
from hybrid_train.loop.step import TrainingStep
from hybrid_train.model.checkpoint import BEST, LAST, load_checkpoint, save_state
from hybrid_train.model.hybrid import HybridClassifier

LOSS_EVERY = 16  # batches
STOP_EVERY = 8  # batches, with several processes


class Trainer:
    """Trains a HybridClassifier; ``run`` computes all epochs that are left."""

    def __init__(
        self,
        model: HybridClassifier,
        spec: ModelSpec,
        config: RunConfig,
        dataset: ImageDataset,
        split: Split,
        folder: Path,
        processes: Processes,
        log: Log,
    ) -> None:
        self.spec, self.config, self.folder = spec, config, folder
        self.dataset, self.split, self.processes = dataset, split, processes
        self.device = processes.device
        self.precision = choose_precision(config.precision, self.device)
        self.model = model.to(self.device)
        if config.channels_last and self.device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)
        if processes.world > 1 and self.device.type == "cuda":
            # timm's function also converts its fused layers of norm and activation.
            self.model = convert_sync_batchnorm(self.model)
        self.progress = Progress()
        labels = dataset.samples.labels
        self.plan = BatchPlan(
            split.train,
            labels,
            batch_size=config.batch_size_for(len(split.train), processes.world),
            seed=config.seed,
            balanced=config.sampler == "balanced",
            accumulate=config.accumulate,
            rank=processes.rank,
            world=processes.world,
        )
        check_batchnorm(self.model, self.plan, config)
        self.step = TrainingStep(
            self.model, config, self.plan, labels, len(spec.classes), self.device, self.precision
        )
        self.data = Loader(dataset, workers=self._workers(), pin=self.device.type == "cuda")
        self.epoch_log = EpochLog(folder, config.epochs, log)
        self._stop = StopRequest()

    def run(self) -> bool:
        """Train to the last epoch, or until patience ends; return False if a signal came before.

        Ctrl-C and SIGTERM end the current batch, and the state is saved.
        """
        progress, config = self.progress, self.config
        first = self.processes.first
        network: nn.Module | None = None
        with self._stop, self.epoch_log.open(progress.epoch + 1) if first else nullcontext():
            while progress.epoch < config.epochs and not progress.out_of_patience(config.patience):
                self._set_mode()
                if network is None or progress.epoch == config.freeze_epochs:
                    network = self._network()  # of the weights that are trained from now on
                if not self._train_epoch(network):
                    return False
                self._end_epoch()
        return True

    def resume(self) -> None:
        """Continue from last.pt; raises CheckpointError if its configuration differs."""
        self.progress = load_training_state(self.folder / LAST, self.step.stateful(), self.config)

    def save(self) -> None:
        """Write the state to last.pt: the complete file, or the older one stays."""
        if self.processes.first:
            save_training_state(
                self.folder / LAST, self.step.stateful(), self.progress, self.config
            )

    def best_model(self) -> tuple[HybridClassifier, ModelSpec]:
        """Return the network of the best epoch, in evaluation mode, and its spec."""
        self.processes.barrier()  # the first process may still be writing it
        model, spec = load_checkpoint(self.folder / BEST)
        return model.to(self.device).eval(), spec

    def outputs(self, model: nn.Module, indices: Any, width: int, *, in_fp32: bool = False) -> Any:
        """Evaluate a module of this network on images, sharded over the processes.

        Args:
            model: Takes float ``[b, 3, h, w]`` in 0..1, returns ``[b, width]``.
            indices: The images to evaluate.
            width: The number of columns.
            in_fp32: Compute in fp32, whatever the precision of the run.

        Returns:
            float32 ``[n, width]``, in the order of ``indices``.
        """
        mine = np.arange(len(indices))[self.processes.rank :: self.processes.world]
        rows: list[Any] = [np.empty((0, width), np.float32)]
        size = max(1, min(64, self.config.batch_size))
        shares = [indices[mine[i : i + size]] for i in range(0, len(mine), size)]
        was = model.training
        model.eval()
        with torch.inference_mode():
            for images, _ in self.data.load(shares):
                with exact() if in_fp32 else autocast(self.precision, self.device):
                    out = model(images.to(self.device).float() / 255)
                rows.append(out.float().cpu().numpy())
        model.train(was)
        return self.processes.gather(np.concatenate(rows), mine)

    # ---- one epoch ---------------------------------------------------------------------------

    def _train_epoch(self, network: nn.Module) -> bool:
        progress = self.progress
        batches = self.plan.epoch(progress.epoch)
        shares = [self.plan.share(batch) for batch in batches[progress.step :]]
        started = waiting_since = time.perf_counter()
        losses: list[Tensor] = []
        bar = tqdm(
            self.data.load(shares),
            desc=f"epoch {progress.epoch + 1}/{self.config.epochs}",
            total=len(batches),
            initial=progress.step,
            leave=False,
            disable=None if self.processes.first else True,  # None: shown on a terminal only
        )
        for images, indices in bar:
            progress.waited += time.perf_counter() - waiting_since
            epoch, batch = progress.epoch, progress.step
            losses.append(self.step(network, images, indices, epoch=epoch, batch=batch))
            complete = self.plan.ends_group(batch)
            progress.step += 1
            # Reading a loss waits for the GPU, so a few are read together.
            if complete and (len(losses) >= LOSS_EVERY or progress.step == len(batches)):
                self._read_losses(losses)
            now = time.perf_counter()
            progress.seconds += now - started
            started = waiting_since = now
            if complete and self._asked_to_stop():
                self._read_losses(losses)
                self.save()
                return False
        return True

    def _read_losses(self, losses: list[Tensor]) -> None:
        value = float(torch.stack(losses).sum())
        losses.clear()
        if not np.isfinite(value):
            raise TrainingError(
                f"the loss is {value} in epoch {self.progress.epoch + 1}, near batch "
                f"{self.progress.step}; the last good checkpoint is {self.folder / BEST}; lower "
                f"--lr (now {self.config.lr}), or use --precision fp32"
            )
        self.progress.loss_sum += value

    def _asked_to_stop(self) -> bool:
        if self.processes.world == 1:
            return self._stop.asked
        # All processes stop after the same batch, else some would wait for ever.
        return self.progress.step % STOP_EVERY == 0 and self.processes.any(self._stop.asked)

    def _end_epoch(self) -> None:
        progress = self.progress
        train_loss, count = self.processes.sum(progress.loss_sum, progress.step)
        average = self.step.average
        model = self.model if average is None else average.module
        logits = self.outputs(model, self.split.val, len(self.spec.classes))
        quick = metrics.quick(logits, self.dataset.samples.labels[self.split.val])
        score = quick["auroc"] if quick["auroc"] is not None else quick["balanced_accuracy"]
        images = progress.step * self.plan.batch_size
        row = {
            "epoch": progress.epoch + 1,
            "train_loss": train_loss / count,
            **{f"val_{name}": value for name, value in quick.items()},
            "lr": max(g["lr"] for g in self.step.optimizer.param_groups),
            "seconds": progress.seconds,
            "images_per_s": images / max(progress.seconds, 1e-9),
            "data_wait": progress.waited / max(progress.seconds, 1e-9),
        }
        progress.history.append(row)
        better = progress.end_epoch(score)
        if self.processes.first:
            if better:
                save_state(self.folder / BEST, model.state_dict(), self.spec)
            self.save()
            self.epoch_log.write(row, better)

    def _set_mode(self) -> None:
        self.model.train()
        frozen = self.progress.epoch < self.config.freeze_epochs
        for backbone in (self.model.vit, self.model.cnn):
            backbone.requires_grad_(not frozen)
            if frozen:
                backbone.eval()
        if self.config.freeze_batchnorm:
            freeze_batchnorm(self.model)

    def _network(self) -> nn.Module:
        network: nn.Module = self.model
        if self.processes.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            network = nn.parallel.DistributedDataParallel(network, device_ids=ids)
            # For 1x1 convolutions, whose strides are equivalent in any order.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        if self.config.compile:
            network = torch.compile(network)  # type: ignore[assignment]
        return network

    def _workers(self) -> int:
        if self.dataset.cache is not None:
            return 0
        asked = self.config.workers
        return min(available_cores(), 8) if asked is None else asked


def check_batchnorm(model: nn.Module, plan: BatchPlan, config: RunConfig) -> None:
    """Raise UsageError if batch normalization would see one image."""
    if plan.batch_size // plan.world > 1 or config.freeze_batchnorm:
        return
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    if any(not isinstance(m, nn.SyncBatchNorm) for m in norms):
        raise UsageError(
            f"a batch of {plan.batch_size} leaves a process one image, too few for batch "
            "normalization; expected 2 or more for each, or --freeze-batchnorm"
        )
