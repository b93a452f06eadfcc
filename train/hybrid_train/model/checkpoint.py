"""Checkpoints: weights as safetensors, with the spec in their metadata.

save_checkpoint("runs/a/best.safetensors", model, spec)
model, spec = load_checkpoint("runs/a")
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid_rt.errors import CheckpointError, HybridError
from hybrid_rt.files import atomic_path
from hybrid_rt.spec import METADATA_KEY, ModelSpec
from hybrid_train.model.hybrid import HybridClassifier
from hybrid_train.model.notebook import convert_notebook, is_notebook, notebook_spec

BEST = "best.safetensors"
LAST = "last.pt"


def save_checkpoint(path: str | Path, model: HybridClassifier, spec: ModelSpec) -> None:
    """Write weights and spec to ``path``: the complete file, or the older one stays."""
    save_state(path, model.state_dict(), spec)


def save_state(path: str | Path, state: Mapping[str, Tensor], spec: ModelSpec) -> None:
    """Write a state dict of HybridClassifier as save_checkpoint does."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with atomic_path(Path(path)) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; the library makes it private
        save_file(tensors, str(temporary), metadata={METADATA_KEY: spec.to_json()})
        temporary.chmod(mode)


def load_checkpoint(
    path: str | Path, *, classes: Sequence[str] | None = None
) -> tuple[HybridClassifier, ModelSpec]:
    """Load the network, in evaluation mode, and its spec.

    Args:
        path: A run folder, a .safetensors file of this project or the original notebook's .pth.
        classes: Class names for the notebook's; by default those of its BIRADS task.

    Raises:
        CheckpointError: The file is none of these, or is damaged.
    """
    state, spec = load_state(path, classes=classes)
    model = HybridClassifier(spec)
    load_into(model, state, Path(path))
    return model.eval(), spec


def load_state(
    path: str | Path, *, classes: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], ModelSpec]:
    """Load the state dict and the spec, without building the network."""
    file = checkpoint_file(Path(path))
    if file.suffix == ".safetensors":
        return _load_safetensors(file)
    state = load_pickle(file)
    if not is_notebook(state):
        names = ", ".join(list(state)[:3])
        raise CheckpointError(
            f"{file} holds {names}, …; expected the notebook's feature_extractor.vit.*, "
            "feature_extractor.resnet.* and mlp.*, or a .safetensors file made by hybrid-train"
        )
    return convert_notebook(state, file), notebook_spec(state, file, classes)


def checkpoint_file(path: Path) -> Path:
    """Return the file of ``path``: itself, or the best checkpoint of a run folder."""
    if path.is_dir():
        if (path / BEST).is_file():
            return path / BEST
        raise CheckpointError(f"{path} holds no {BEST}; train first: hybrid-train DATA")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected a run folder or a checkpoint")
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise CheckpointError(
            f"{path} ends in {path.suffix!r}; expected a run folder, .safetensors or .pth"
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty; copy the checkpoint again")
    return path


def load_into(model: HybridClassifier, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a complete state dict; CheckpointError names the first difference."""
    own = model.state_dict()
    for name in own:
        if name not in state:
            raise CheckpointError(f"{path} has no {name}, which its spec's network needs")
        if state[name].shape != own[name].shape:
            raise CheckpointError(
                f"{path} has {name} of shape {list(state[name].shape)}; the network of its spec "
                f"needs {list(own[name].shape)}: do the classes or backbones differ?"
            )
    extra = [name for name in state if name not in own]
    if extra:
        raise CheckpointError(f"{path} has {extra[0]}, which the network of its spec lacks")
    model.load_state_dict(state)


def load_pickle(path: Path) -> dict[str, Any]:
    """Load a dictionary saved by torch.save; raises CheckpointError if it holds code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise CheckpointError(
            f"{path} holds more than tensors, and running what is in it could be unsafe; save "
            "the weights alone: torch.save(model.state_dict(), PATH)"
        ) from err
    except Exception as err:  # torch's unpickler raises almost anything on damaged bytes
        raise CheckpointError(
            f"{path} is no checkpoint that torch can read ({type(err).__name__}: "
            f"{str(err)[:100]}); copy it again"
        ) from err
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}; expected a state dict")
    return dict(state)


def newest_run(root: str | Path = "runs") -> Path:
    """Return the run folder under ``root`` whose best checkpoint is newest."""
    files = sorted(Path(root).glob(f"*/{BEST}"), key=lambda p: p.stat().st_mtime)
    if not files:
        raise CheckpointError(
            f"no run under {Path(root).resolve()}; train first (hybrid-train DATA) or name a "
            "checkpoint"
        )
    return files[-1].parent


def _load_safetensors(file: Path) -> tuple[dict[str, Tensor], ModelSpec]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as tensors:
            text = (tensors.metadata() or {}).get(METADATA_KEY)
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{file} is damaged ({err}); copy it again") from err
    if text is None:
        raise CheckpointError(
            f"{file} carries no model specification; expected a checkpoint made by hybrid-train"
        )
    try:
        return state, ModelSpec.from_json(text)
    except HybridError as err:
        raise CheckpointError(f"{file}: {err}") from err
