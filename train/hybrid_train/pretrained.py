"""timm's pretrained weights for the two backbones, from the hub or from local files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hybrid_rt.errors import CheckpointError, UsageError
from hybrid_rt.spec import ModelSpec
from hybrid_train.model import HybridClassifier


def load_pretrained(model: HybridClassifier, spec: ModelSpec, files: Sequence[Path]) -> None:
    """Fill both backbones: from the hub where ``files`` is empty, else from ViT and CNN files.

    A file is timm's own (.safetensors or .pth); its classifier is left out, a position embedding
    of another size is resampled. Raises CheckpointError for a file that does not fit.
    """
    if files and len(files) != 2:
        raise UsageError(
            f"--pretrained was given {len(files)} file(s); expected none (the hub) or two: the "
            f"weights of {spec.vit.model}, then of {spec.cnn.model}"
        )
    for index, (backbone, name) in enumerate(
        ((model.vit, spec.vit.model), (model.cnn, spec.cnn.model))
    ):
        state = read_state(files[index]) if files else download(name)
        fill(backbone, state, str(files[index]) if files else name)


def download(name: str) -> Mapping[str, Tensor]:
    """The hub's weights of a timm model; the error says how to do without a network."""
    import timm

    try:
        source = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as err:  # hub, network and name errors have no common root
        text = (str(err).strip().splitlines() or [type(err).__name__])[-1]
        raise CheckpointError(
            f"the weights of {name} cannot be had from the hub ({text[:200]}); download them where "
            "there is a network (timm's model.safetensors) and give the files: "
            "--pretrained VIT_FILE CNN_FILE"
        ) from err
    return source.state_dict()


def read_state(path: Path) -> Mapping[str, Tensor]:
    from hybrid_train.checkpoint import load_pickle

    if not path.is_file():
        raise CheckpointError(f"{path} is not there; expected a file of timm's weights")
    if path.suffix != ".safetensors":
        return load_pickle(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{path} is damaged ({err}); copy it again") from err


def fill(backbone: nn.Module, state: Mapping[str, Any], origin: str) -> None:
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    if isinstance(backbone, VisionTransformer):
        state = checkpoint_filter_fn(dict(state), backbone)
    own = backbone.state_dict()
    missing = [name for name in own if name not in state]
    wrong = [n for n in own if n in state and own[n].shape != state[n].shape]
    if missing or wrong:
        name = (missing or wrong)[0]
        what = "lacks" if missing else "has another shape of"
        raise CheckpointError(f"{origin} {what} {name}; are these the weights of that model?")
    backbone.load_state_dict({name: state[name] for name in own})
