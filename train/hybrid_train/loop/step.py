"""One batch: augment, forward, loss, backward and, at the end of its group, the update.

All random numbers come from (seed, epoch, batch), so that a resumed run draws the same.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hybrid_train.config import RunConfig
from hybrid_train.data.augment import augment, mixer, rand_augment
from hybrid_train.data.loader import BatchPlan
from hybrid_train.loop.optimizer import autocast, learning_rate, make_optimizer, set_learning_rate
from hybrid_train.model.hybrid import HybridClassifier


class TrainingStep:
    """A step of ``model`` on one batch of ``plan``."""

    def __init__(
        self,
        model: HybridClassifier,
        config: RunConfig,
        plan: BatchPlan,
        labels: NDArray[np.int64],
        classes: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.model, self.config, self.plan = model, config, plan
        self.device, self.precision = device, precision
        self.optimizer = make_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.average = weight_average(model, config.ema) if config.ema else None
        self.labels = torch.from_numpy(labels)
        self.class_weights = self._class_weights(labels[plan.indices], classes)
        self.mixer = mixer(config.mixup, config.cutmix, config.label_smoothing, classes)

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        indices: Tensor,
        *,
        epoch: int,
        batch: int,
    ) -> Tensor:
        """Train on the epoch's n-th batch and return its loss on the device.

        The weights move when the batch ends its group of accumulated ones.

        Args:
            network: Computes ``self.model``; it may be distributed or compiled.
            images: uint8 ``[b, 3, h, w]``.
            indices: The images' indices in the samples.
        """
        config = self.config
        step = epoch * len(self.plan) + batch
        seed = [config.seed, epoch, batch]
        torch.manual_seed(_seed([*seed, self.plan.rank]))
        labels = self.labels[indices].to(self.device)
        images = images.to(self.device, non_blocking=True).float() / 255
        images = self._augmented(images, seed)
        images, targets = self._mixed(images, labels, seed)
        if config.channels_last and self.device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        total = config.epochs * len(self.plan)
        warmup = round(config.warmup_epochs * len(self.plan))
        set_learning_rate(self.optimizer, learning_rate(step, total, warmup, config.lr))
        complete = self.plan.ends_group(batch)
        # Processes exchange gradients once a group.
        exchange = nullcontext if complete else getattr(network, "no_sync", nullcontext)
        with exchange():
            loss = self._backward(network, images, labels, targets, self.plan.group_size(batch))
        if complete:
            self._update(step)
        return loss

    def _backward(
        self, network: nn.Module, images: Tensor, labels: Tensor, targets: Tensor, group: int
    ) -> Tensor:
        with autocast(self.precision, self.device):
            logits = network(images)
        smoothing = self.config.label_smoothing if targets is labels else 0.0
        # The mean over images, not over weights: processes with other images then agree.
        loss = F.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            label_smoothing=smoothing,
            reduction="none",
        ).mean()
        self.scaler.scale(loss / group).backward()
        return loss.detach()

    def stateful(self) -> dict[str, Any]:
        """Return the objects of a state to resume from; an unused one is None."""
        return {
            "model": self.model,
            "ema": None if self.average is None else self.average.module,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
        }

    def _augmented(self, images: Tensor, seed: list[int]) -> Tensor:
        share = slice(self.plan.rank, None, self.plan.world)
        if self.config.randaugment:
            images = rand_augment(images, self.config.randaugment, [*seed, 4], share)
        random = np.random.default_rng([*seed, 2])
        return augment(images, self.config.augment, random, share, self.plan.batch_size)

    def _mixed(self, images: Tensor, labels: Tensor, seed: list[int]) -> tuple[Tensor, Tensor]:
        """Return images and targets after mixup or cutmix; the labels if both are off."""
        if self.mixer is None or len(images) % 2:
            return images, labels
        state = np.random.get_state()  # timm draws from NumPy's global generator
        np.random.seed(_seed([*seed, 3]))
        mixed = self.mixer(images, labels)
        np.random.set_state(state)
        return mixed  # type: ignore[no-any-return]

    def _update(self, step: int) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, step + 2)  # see weight_average

    def _class_weights(self, labels: NDArray[np.int64], classes: int) -> Tensor | None:
        if self.config.class_weights == "none":
            return None
        counts = np.bincount(labels, minlength=classes)
        weights = len(labels) / (classes * np.maximum(counts, 1))
        return torch.tensor(weights, dtype=torch.float32, device=self.device)


def weight_average(model: nn.Module, decay: float) -> ModelEmaV3:
    """Return timm's moving average of weights and buffers (Polyak & Juditsky 1992).

    The memory is shorter at first, since the first weights are noise. After step k, counted from
    0, the decay is (1 + k) / (10 + k) up to ``decay``: timm's warm-up with these constants, for
    ``update(model, k + 2)``.
    """
    return ModelEmaV3(model, decay=decay, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)


def _seed(entropy: list[int]) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
