"""The training loop: plain PyTorch, resumable to the bit, the same on one process or many."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from hybrid_rt.errors import CheckpointError, TrainingError
from hybrid_rt.files import atomic_path
from hybrid_rt.spec import ModelSpec
from hybrid_train import metrics
from hybrid_train.augment import augment, mixer, rand_augment
from hybrid_train.checkpoint import BEST, LAST, load_pickle, save_state
from hybrid_train.config import TrainConfig
from hybrid_train.model import HybridClassifier
from hybrid_train.optimization import (
    autocast,
    choose_precision,
    freeze_batchnorm,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from hybrid_train.pictures import BatchPlan, Loader, Pictures
from hybrid_train.processes import Processes
from hybrid_train.splits import Split

Log = Callable[[str], None]

LOSS_EVERY = 16  # batches
STOP_EVERY = 8  # batches, with several processes


@dataclass
class Progress:
    """Where a run stands; saved with the weights."""

    epoch: int = 0
    step: int = 0  # batches done in this epoch
    best_score: float = -np.inf
    best_epoch: int = -1
    loss_sum: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Fits a HybridClassifier; ``run`` does all epochs that are left."""

    def __init__(
        self,
        model: HybridClassifier,
        spec: ModelSpec,
        config: TrainConfig,
        pictures: Pictures,
        split: Split,
        folder: Path,
        processes: Processes,
        log: Log,
    ) -> None:
        self.spec, self.config, self.folder = spec, config, folder
        self.pictures, self.split, self.processes, self.log = pictures, split, processes, log
        self.device = processes.device
        self.precision = choose_precision(config.precision, self.device)
        self.model = model.to(self.device)
        if config.channels_last and self.device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)
        if processes.world > 1 and self.device.type == "cuda":
            # timm's own, which knows its fused norm and activation layers.
            self.model = convert_sync_batchnorm(self.model)
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.ema = copy.deepcopy(self.model).eval() if config.ema else None
        self.progress = Progress()
        labels = pictures.samples.labels
        self.plan = BatchPlan(
            split.train,
            labels,
            batch_size=min(config.batch_size, max(processes.world, len(split.train))),
            seed=config.seed,
            balanced=config.sampler == "balanced",
            rank=processes.rank,
            world=processes.world,
        )
        self.class_weights = self._class_weights(labels[split.train])
        self.labels = torch.from_numpy(labels)
        self.mixer = mixer(
            config.mixup, config.cutmix, config.label_smoothing, len(self.spec.classes)
        )
        self.data = Loader(pictures, workers=self._workers(), pin=self.device.type == "cuda")
        self._stop = False

    # ---- the whole run -----------------------------------------------------------------------

    def run(self) -> bool:
        """Train to the last epoch, or until patience ends; False where Ctrl-C came before.

        Ctrl-C and SIGTERM end the batch that runs, and the state is saved.
        """
        with self._signals(), self._scalars():
            network = self._network()
            while self.progress.epoch < self.config.epochs and not self._out_of_patience():
                if not self._train_epoch(network):
                    return False
                self._end_epoch()
        return True

    def best_model(self) -> HybridClassifier:
        """The network with the weights of the best epoch, in evaluation mode."""
        from hybrid_train.checkpoint import load_checkpoint

        self.processes.barrier()  # the first process may still be writing it
        model, _ = load_checkpoint(self.folder / BEST)
        return model.to(self.device).eval()

    def _network(self) -> nn.Module:
        network: nn.Module = self.model
        if self.processes.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            network = nn.parallel.DistributedDataParallel(
                network, device_ids=ids, find_unused_parameters=self.config.freeze_epochs > 0
            )
        if self.config.compile:
            network = torch.compile(network)  # type: ignore[assignment]
        return network

    # ---- one epoch ---------------------------------------------------------------------------

    def _train_epoch(self, network: nn.Module) -> bool:
        progress = self.progress
        self._set_mode()
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
            complete = (progress.step + 1) % self.config.accumulate == 0
            complete = complete or progress.step + 1 == len(batches)
            losses.append(self._train_batch(network, images, indices, complete))
            progress.step += 1
            # Reading a loss waits for the GPU, so it is done now and then.
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
                f"{self.progress.step}; the last good checkpoint is {self.folder / BEST}: lower "
                f"--lr (now {self.config.lr}), or use --precision fp32"
            )
        self.progress.loss_sum += value

    def _asked_to_stop(self) -> bool:
        if self.processes.world == 1:
            return self._stop
        # All processes stop after the same batch, or they would wait for each other for ever.
        return self.progress.step % STOP_EVERY == 0 and self.processes.any(self._stop)

    def _train_batch(
        self, network: nn.Module, images: Tensor, indices: Tensor, complete: bool
    ) -> Tensor:
        config, progress = self.config, self.progress
        step = progress.epoch * len(self.plan) + progress.step
        seed = [config.seed, progress.epoch, progress.step]
        torch.manual_seed(int(np.random.SeedSequence([*seed, self.plan.rank]).generate_state(1)[0]))
        labels = self.labels[indices].to(self.device)
        images = images.to(self.device, non_blocking=True).float() / 255
        images = self._augmented(images, seed)
        targets: Tensor = labels
        if self.mixer is not None and len(images) % 2 == 0:
            state = np.random.get_state()
            np.random.seed(int(np.random.SeedSequence([*seed, 3]).generate_state(1)[0]))
            images, targets = self.mixer(images, labels)
            np.random.set_state(state)
        if config.channels_last and self.device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        total = config.epochs * len(self.plan)
        warmup = round(config.warmup_epochs * len(self.plan))
        set_learning_rate(self.optimizer, learning_rate(step, total, warmup, config.lr))
        with autocast(self.precision, self.device):
            logits = network(images)
        smoothing = config.label_smoothing if targets is labels else 0.0
        # The mean over pictures, not over weights: processes with other pictures then agree.
        loss = F.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            label_smoothing=smoothing,
            reduction="none",
        ).mean()
        self.scaler.scale(loss / config.accumulate).backward()
        if complete:
            self.scaler.unscale_(self.optimizer)
            if config.clip_norm:
                nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            self._update_ema(step)
        return loss.detach()

    def _augmented(self, images: Tensor, seed: list[int]) -> Tensor:
        share = slice(self.plan.rank, None, self.plan.world)
        if self.config.randaugment:
            images = rand_augment(images, self.config.randaugment, [*seed, 4], share)
        random = np.random.default_rng([*seed, 2])
        return augment(images, self.config.augment, random, share, self.plan.batch_size)

    def _set_mode(self) -> None:
        self.model.train()
        frozen = self.progress.epoch < self.config.freeze_epochs
        for backbone in (self.model.vit, self.model.cnn):
            backbone.requires_grad_(not frozen)
            if frozen:
                backbone.eval()
        if self.config.freeze_batchnorm:
            freeze_batchnorm(self.model)

    def _update_ema(self, step: int) -> None:
        if self.ema is None:
            return
        # Early on, a shorter memory: the first weights are noise.
        decay = min(self.config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, now in zip(
                self.ema.state_dict().values(), self.model.state_dict().values(), strict=True
            ):
                if kept.is_floating_point():
                    kept.lerp_(now, 1 - decay)
                else:
                    kept.copy_(now)

    # ---- after an epoch ----------------------------------------------------------------------

    def _end_epoch(self) -> None:
        progress = self.progress
        train_loss, count = self.processes.sum(progress.loss_sum, progress.step)
        model = self.ema if self.ema is not None else self.model
        logits = self.logits(model, self.split.val)
        labels = self.pictures.samples.labels[self.split.val]
        quick = metrics.quick(logits, labels)
        score = quick["auroc"] if quick["auroc"] is not None else quick["balanced_accuracy"]
        images = progress.step * self.plan.batch_size
        progress.history.append(
            {
                "epoch": progress.epoch + 1,
                "train_loss": train_loss / count,
                **{f"val_{name}": value for name, value in quick.items()},
                "lr": max(g["lr"] for g in self.optimizer.param_groups),
                "seconds": progress.seconds,
                "images_per_s": images / max(progress.seconds, 1e-9),
                "data_wait": progress.waited / max(progress.seconds, 1e-9),
            }
        )
        better = score > progress.best_score
        if better:
            progress.best_score, progress.best_epoch = float(score), progress.epoch
        progress.epoch += 1
        progress.step, progress.loss_sum = 0, 0.0
        progress.seconds = progress.waited = 0.0
        if self.processes.first:
            if better:
                save_state(self.folder / BEST, model.state_dict(), self.spec)
            self.save()
        self._report(progress.history[-1], better)

    def logits(self, model: nn.Module, indices: Any, *, exact: bool = False) -> Any:
        """Logits float32 ``[n, classes]``; ``exact`` computes in fp32 whatever the precision."""
        return self.outputs(model, indices, len(self.spec.classes), exact=exact)

    def outputs(self, model: nn.Module, indices: Any, width: int, *, exact: bool = False) -> Any:
        """What a module of this network gives for pictures, float32 ``[n, width]``."""
        mine = np.arange(len(indices))[self.processes.rank :: self.processes.world]
        rows: list[Any] = [np.empty((0, width), np.float32)]
        size = max(1, min(64, self.config.batch_size))
        shares = [indices[mine[i : i + size]] for i in range(0, len(mine), size)]
        was = model.training
        model.eval()
        with torch.inference_mode():
            for images, _ in self.data.load(shares):
                with autocast("fp32" if exact else self.precision, self.device):
                    out = model(images.to(self.device).float() / 255)
                rows.append(out.float().cpu().numpy())
        model.train(was)
        return self.processes.gather(np.concatenate(rows), mine)

    def _out_of_patience(self) -> bool:
        progress = self.progress
        waited = progress.epoch - 1 - progress.best_epoch
        return bool(self.config.patience) and progress.epoch > 0 and waited >= self.config.patience

    # ---- state -------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state to last.pt: whole, or the older one stays."""
        if not self.processes.first:
            return
        state = {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": dict(vars(self.progress)),
            "config": self.config.to_dict(),
        }
        with atomic_path(self.folder / LAST) as part:
            torch.save(state, part)

    def resume(self) -> None:
        """Go on from last.pt. Raises CheckpointError where it is of another configuration."""
        path = self.folder / LAST
        if not path.is_file():
            raise CheckpointError(f"{path} is not there; nothing to resume: start without --resume")
        state = load_pickle(path)
        changed = self._changed_since(state.get("config"))
        if changed:
            raise CheckpointError(
                f"{path} was made with other settings ({changed}); resume with the same options "
                "or start a new run"
            )
        try:
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.progress = Progress(**state["progress"])
        except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as err:
            raise CheckpointError(f"{path} is not a state of this run ({err!r})") from err

    def _changed_since(self, then: Any) -> str:
        """The first setting that matters and differs, such as "lr=0.1, now 0.2"; else empty."""
        if not isinstance(then, dict):
            return "none at all"
        for name, now in self.config.to_dict().items():
            before = tuple(then[name]) if isinstance(then.get(name), list) else then.get(name)
            if name not in FREE_TO_CHANGE and before != now:
                return f"{name}={before!r}, now {now!r}"
        return ""

    @contextmanager
    def _scalars(self) -> Iterator[None]:
        """TensorBoard's log in the run folder, open while training."""
        if not self.processes.first:
            yield
            return
        step = self.progress.epoch + 1  # what an interrupted run wrote beyond is dropped
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        self._writer = writer
        try:
            yield
        finally:
            writer.close()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(*_: object) -> None:
            if self._stop:  # asked twice: now
                raise KeyboardInterrupt
            self._stop = True

        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ---- small parts ---------------------------------------------------------------------------

    def _class_weights(self, labels: Any) -> Tensor | None:
        if self.config.class_weights == "none":
            return None
        counts = np.bincount(labels, minlength=len(self.spec.classes))
        weights = len(labels) / (len(self.spec.classes) * np.maximum(counts, 1))
        return torch.tensor(weights, dtype=torch.float32, device=self.device)

    def _workers(self) -> int:
        if self.pictures.cache is not None:
            return 0
        from hybrid_train.tables import available_cores

        asked = self.config.workers
        return min(available_cores(), 8) if asked is None else asked

    def _report(self, row: dict[str, Any], better: bool) -> None:
        if not self.processes.first:
            return
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, row["epoch"])
        auroc = row["val_auroc"]
        self.log(
            f"epoch {row['epoch']:>3}/{self.config.epochs}  "
            f"loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
            + (f"val AUROC {auroc:.4f}  " if auroc is not None else "")
            + f"val acc {row['val_accuracy']:.4f}  {row['images_per_s']:.0f} images/s"
            + (f" (waited {row['data_wait']:.0%} for data)" if row["data_wait"] > 0.05 else "")
            + ("  best" if better else "")
        )


#: Settings that may differ between a run and its resumption: they do not change the weights.
FREE_TO_CHANGE = frozenset({"workers", "cache_gib", "patience", "compile", "threshold"})
