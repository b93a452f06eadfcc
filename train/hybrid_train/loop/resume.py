"""The progress of a run, and last.pt, from which it resumes to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybrid_rt.errors import CheckpointError
from hybrid_rt.files import atomic_path
from hybrid_train.config import RunConfig
from hybrid_train.model.checkpoint import load_pickle

#: Settings that may differ between a run and its resumption: they do not change the weights.
FREE_TO_CHANGE = frozenset({"workers", "cache_gib", "patience", "compile", "threshold"})


@dataclass
class Progress:
    """The position of a run; saved with the weights."""

    epoch: int = 0
    step: int = 0  # batches done in this epoch
    best_score: float = -np.inf
    best_epoch: int = -1
    loss_sum: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def end_epoch(self, score: float) -> bool:
        """Count the epoch, start the next, and return whether the score is the best yet."""
        better = score > self.best_score
        if better:
            self.best_score, self.best_epoch = float(score), self.epoch
        self.epoch += 1
        self.step, self.loss_sum = 0, 0.0
        self.seconds = self.waited = 0.0
        return better

    def out_of_patience(self, patience: int) -> bool:
        """Return whether ``patience`` epochs passed without a better one; 0 is off."""
        waited = self.epoch - 1 - self.best_epoch
        return bool(patience) and self.epoch > 0 and waited >= patience


def save_training_state(
    path: Path, objects: Mapping[str, Any], progress: Progress, config: RunConfig
) -> None:
    """Write the objects' state dicts (an object may be None) and the progress."""
    state = {name: None if item is None else item.state_dict() for name, item in objects.items()}
    state |= {"progress": dict(vars(progress)), "config": config.to_dict()}
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_training_state(path: Path, objects: Mapping[str, Any], config: RunConfig) -> Progress:
    """Load the objects in place and return the progress.

    Raises:
        CheckpointError: The file is missing or of another configuration.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: nothing to resume; start without --resume")
    state = load_pickle(path)
    changed = changed_since(state.get("config"), config)
    if changed:
        raise CheckpointError(
            f"{path} was made with other settings ({changed}); resume with the same options "
            "or start a new run"
        )
    try:
        for name, item in objects.items():
            if item is not None:
                item.load_state_dict(state[name])
        return Progress(**state["progress"])
    except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as err:
        raise CheckpointError(f"{path} is not a state of this run ({err!r})") from err


def changed_since(then: Any, config: RunConfig) -> str:
    """Return the first setting that differs, such as "lr=0.1, now 0.2"; else ""."""
    if not isinstance(then, dict):
        return "none in the file"
    for name, now in config.to_dict().items():
        before = tuple(then[name]) if isinstance(then.get(name), list) else then.get(name)
        if name not in FREE_TO_CHANGE and before != now:
            return f"{name}={before!r}, now {now!r}"
    return ""
