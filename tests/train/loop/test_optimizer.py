"""The parameter groups of both sizes of network: who decays, and at which rate it learns."""

import pytest
import torch

from hybrid_rt.spec import Head, ModelSpec, Preprocess
from hybrid_train.config import PRESETS
from hybrid_train.loop.optimizer import make_optimizer, set_learning_rate
from hybrid_train.model.hybrid import HybridClassifier, describe_branches


@pytest.fixture(scope="module", params=["tiny", "base"])
def network(request):
    """A network of a preset without memory for its weights, and the preset."""
    config = PRESETS[request.param]
    size = config.image_size
    with torch.device("meta"):
        vit, cnn = describe_branches(config.vit, config.cnn, (size, size))
        spec = ModelSpec(
            classes=("a", "b"),
            preprocess=Preprocess(height=size, width=size),
            vit=vit,
            cnn=cnn,
            head=Head(hidden=config.hidden),
        )
        return HybridClassifier(spec), config


def settings_by_name(model, config):
    """(weight decay, rate) of each parameter, by its name."""
    optimizer = make_optimizer(model, config)
    set_learning_rate(optimizer, 1.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [
        (names[parameter], (group["weight_decay"], group["lr"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(names) == len(dict(found))
    return dict(found)


def expected_decay(name, parameter, decay):
    alone = parameter.ndim <= 1 or name in ("vit.pos_embed", "vit.cls_token")
    return 0.0 if alone else decay


def test_groups_decay_matrices_at_branch_rates(network):
    model, config = network
    config = config.replace(weight_decay=0.3, backbone_lr_scale=0.5)
    expected = {
        name: (expected_decay(name, p, 0.3), 1.0 if name.startswith("head.") else 0.5)
        for name, p in model.named_parameters()
    }
    assert settings_by_name(model, config) == expected


def test_layer_decay_lowers_the_first_layers(network):
    model, config = network
    config = config.replace(weight_decay=0.3, backbone_lr_scale=0.5, layer_decay=0.75)
    found = settings_by_name(model, config)
    for name, parameter in model.named_parameters():
        decay, rate = found[name]
        assert decay == expected_decay(name, parameter, 0.3), name
        block = name.split(".")[2] if name.startswith("vit.blocks.") else None
        if block is not None:
            above = len(model.vit.blocks) - 1 - int(block)
            assert rate == pytest.approx(0.5 * 0.75**above), name
        elif name.startswith("head."):
            assert rate == 1.0
    first = [name for name in found if name.startswith(("vit.patch_embed.", "cnn.conv1."))]
    assert len(first) >= 3
    assert all(found[name][1] < 0.5 * 0.75 for name in first)


def test_no_weight_decay_leaves_none_out(network):
    model, config = network
    found = settings_by_name(model, config.replace(weight_decay=0.0))
    assert {decay for decay, _ in found.values()} == {0.0}
