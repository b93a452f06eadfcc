"""Choose the start of a run before data is read: random, pretrained or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hybrid_rt.errors import UsageError
from hybrid_rt.spec import Branch, Head, ModelSpec, Preprocess
from hybrid_train.config import RunConfig, option
from hybrid_train.data.samples import Samples
from hybrid_train.model.checkpoint import load_into, load_state
from hybrid_train.model.hybrid import HybridClassifier, describe_branches
from hybrid_train.model.pretrained import Weights, load_pretrained, read_pretrained, resampled
from hybrid_train.provenance import git_commit, versions

#: Settings of the network, which a checkpoint brings along.
NETWORK = ("vit", "cnn", "hidden", "dropout")
#: Settings of the pixels, by their names in Preprocess.
PIXELS = ("crop", "resize", "high_bit_depth", "dicom_window")


@dataclass(frozen=True, kw_only=True)
class Start:
    """The branches, the preprocessing and the first weights of a run; None: random weights."""

    preprocess: Preprocess
    vit: Branch
    cnn: Branch
    head: Head
    #: A checkpoint's spec and weights, and its path.
    checkpoint: tuple[ModelSpec, Mapping[str, Tensor], Path] | None = None
    #: timm's weights, ViT and CNN.
    pretrained: tuple[Weights, Weights] | None = None


def choose_start(
    config: RunConfig,
    *,
    weights: Path | None = None,
    pretrained: Sequence[Path] | None = None,
    given: frozenset[str] = frozenset(),
) -> Start:
    """Check the options of the start, and read the weights.

    Args:
        config: The settings of the run.
        weights: A checkpoint to start from.
        pretrained: Files of timm's weights; empty for the hub's.
        given: Settings that the user set; a checkpoint keeps its own for the others.

    Raises:
        UsageError: The network cannot be made.
        CheckpointError: The weights cannot be read.
    """
    pixels = {name: getattr(config, name) for name in PIXELS}
    size = config.image_size
    if weights is None:
        vit, cnn = describe_branches(
            config.vit, config.cnn, (size, size), timm_norm=pretrained is not None
        )
        return Start(
            preprocess=Preprocess(height=size, width=size, **pixels),
            vit=vit,
            cnn=cnn,
            head=Head(hidden=config.hidden, dropout=config.dropout),
            pretrained=None
            if pretrained is None
            else read_pretrained(config.vit, config.cnn, pretrained),
        )
    fixed = [name for name in NETWORK if name in given]
    if fixed:
        raise UsageError(
            f"{option(fixed[0])} does not go with --weights, which brings its own network; "
            "leave it out"
        )
    state, spec = load_state(weights)
    changed: dict[str, Any] = {name: pixels[name] for name in PIXELS if name in given}
    if "image_size" in given:
        changed |= {"height": size, "width": size}
    return Start(
        preprocess=replace(spec.preprocess, **changed),
        vit=spec.vit,
        cnn=spec.cnn,
        head=spec.head,
        checkpoint=(spec, state, weights),
    )


def make_model(
    samples: Samples, start: Start, config: RunConfig
) -> tuple[HybridClassifier, ModelSpec]:
    """Return the network with its first weights, and the spec to train it with."""
    provenance = {
        "data": samples.origin,
        "data_fingerprint": samples.fingerprint(),
        "seed": config.seed,
        "commit": git_commit(),
        "versions": versions(),
    }
    if start.checkpoint is not None:
        provenance["weights"] = str(start.checkpoint[2])
    spec = ModelSpec(
        classes=samples.classes,
        preprocess=start.preprocess,
        vit=start.vit,
        cnn=start.cnn,
        head=start.head,
        task=samples.task,
        provenance=provenance,
    )
    model = HybridClassifier(spec)
    if start.checkpoint is not None:
        load_checkpoint_weights(model, samples.classes, *start.checkpoint)
    elif start.pretrained is not None:
        load_pretrained(model, start.pretrained)
    return model, spec


def load_checkpoint_weights(
    model: HybridClassifier,
    classes: Sequence[str],
    spec: ModelSpec,
    state: Mapping[str, Tensor],
    path: Path,
) -> None:
    """Load a checkpoint's weights, resampled to the image size.

    The model keeps its own head if the number of classes differs.
    """
    vit = {n.removeprefix("vit."): t for n, t in state.items() if n.startswith("vit.")}
    state = {**state, **{f"vit.{n}": t for n, t in resampled(model.vit, vit).items()}}
    if len(spec.classes) != len(classes):
        new = {name: t for name, t in model.state_dict().items() if name.startswith("head.")}
        state = {**state, **new}
    load_into(model, state, path)
