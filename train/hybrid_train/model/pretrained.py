"""timm's pretrained weights for the two backbones, from the hub or from local files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hybrid_rt.errors import CheckpointError, UsageError
from hybrid_train.model.checkpoint import load_pickle
from hybrid_train.model.hybrid import HybridClassifier


@dataclass(frozen=True)
class Weights:
    """A backbone's weights, and the file or the model that they come from."""

    state: Mapping[str, Tensor]
    origin: str


def read_pretrained(vit: str, cnn: str, files: Sequence[Path]) -> tuple[Weights, Weights]:
    """Read both backbones' weights: from the hub without ``files``, else ViT's file, then CNN's.

    A file is timm's own, .safetensors or .pth.

    Raises:
        UsageError: The number of files is neither none nor two.
        CheckpointError: Weights cannot be downloaded or read.
    """
    check_files(files, vit, cnn)
    if not files:
        return Weights(download(vit), vit), Weights(download(cnn), cnn)
    first, second = files
    return Weights(read_state(first), str(first)), Weights(read_state(second), str(second))


def load_pretrained(model: HybridClassifier, weights: tuple[Weights, Weights]) -> None:
    """Fill both backbones, without a classifier, with a resampled position embedding.

    Raises:
        CheckpointError: The weights are of another model.
    """
    for backbone, one in zip((model.vit, model.cnn), weights, strict=True):
        fill(backbone, one.state, one.origin)


def check_files(files: Sequence[Path], vit: str, cnn: str) -> None:
    """Raise UsageError or CheckpointError unless ``files`` are none, or two that exist."""
    if files and len(files) != 2:
        raise UsageError(
            f"--pretrained has {len(files)} file(s); expected none (the hub) or two: the "
            f"weights of {vit}, then of {cnn}"
        )
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; expected a file of timm's weights")


def download(name: str) -> Mapping[str, Tensor]:
    """Download a timm model's weights; without a network the error proposes files."""
    import timm

    try:
        source = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as err:  # hub, network and name errors have no common root
        text = (str(err).strip().splitlines() or [type(err).__name__])[-1].partition(". ")[0]
        raise CheckpointError(
            f"the weights of {name} cannot be downloaded from the hub ({text[:200]}); download "
            "them on a machine with a network (timm's model.safetensors) and pass the files: "
            "--pretrained VIT_FILE CNN_FILE"
        ) from err
    return source.state_dict()


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Read a file of timm's weights."""
    if path.suffix != ".safetensors":
        return load_pickle(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{path} is damaged ({err}); copy it again") from err


def fill(backbone: nn.Module, state: Mapping[str, Any], origin: str) -> None:
    """Load the weights into the backbone; CheckpointError names what does not fit."""
    state = resampled(backbone, state)
    own = backbone.state_dict()
    missing = [name for name in own if name not in state]
    wrong = [n for n in own if n in state and own[n].shape != state[n].shape]
    if missing or wrong:
        name = (missing or wrong)[0]
        what = "lacks" if missing else "has another shape of"
        raise CheckpointError(f"{origin} {what} {name}; are these the weights of that model?")
    backbone.load_state_dict({name: state[name] for name in own})


def resampled(backbone: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a ViT's weights with the position embedding of this backbone's image size."""
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    if not isinstance(backbone, VisionTransformer):
        return state
    return checkpoint_filter_fn(dict(state), backbone)
