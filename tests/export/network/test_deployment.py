"""The deployment graph returns what the network returns, with less to compute."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from timm.models import VisionTransformer
from torch import nn

from factories.tiny_hybrid import make_model
from hybrid_export.network.deployment import DeployedCnn, DeploymentGraph, PlainViT, deployed_vit
from hybrid_export.network.fold_batchnorm import fold_batch_norms
from hybrid_export.network.vit import DeployedViT, is_standard


def images(count: int, size: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def test_graph_equals_the_network(tiny_model):
    model, spec = tiny_model
    graph = DeploymentGraph(model, spec).eval()
    pixels = images(3)
    with torch.no_grad():
        features = model.forward_features(pixels.permute(0, 3, 1, 2).float() / 255)
        logits = model.head(features)
        got = graph(pixels)
    expected = ((logits / spec.temperature).softmax(-1), logits, features)
    for name, a, b in zip(("probabilities", "logits", "features"), got, expected, strict=True):
        gap = float((a - b).abs().max())
        assert gap < 2e-5, f"{name}: {gap}"


def test_the_network_is_not_changed(tiny_model):
    model, spec = tiny_model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    DeploymentGraph(model, spec)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_branches_with_their_own_normalization():
    model, spec = make_model()
    cnn = spec.cnn.__class__(**{**spec.cnn.__dict__, "mean": (0.1, 0.2, 0.3), "std": (0.5,) * 3})
    spec = spec.replace(cnn=cnn)
    other = type(model)(spec).eval()
    other.load_state_dict(model.state_dict())
    pixels = images(2)
    with torch.no_grad():
        expected = other(pixels.permute(0, 3, 1, 2).float() / 255)
        plain = model(pixels.permute(0, 3, 1, 2).float() / 255)
        got = DeploymentGraph(other, spec).eval()(pixels)[1]
    assert float((got - expected).abs().max()) < 2e-5
    assert float((plain - expected).abs().max()) > 1e-2, "the normalization must matter"


VIT_VARIANTS = {
    "plain": {},
    "qk_norm": {"qk_norm": True},
    "layer_scale": {"init_values": 0.3},
    "no_qkv_bias": {"qkv_bias": False},
    "registers": {"reg_tokens": 2},
    "no_embed_class": {"no_embed_class": True, "reg_tokens": 1},
    "pre_norm": {"pre_norm": True},
    "no_position": {"pos_embed": "none"},
}


@pytest.mark.parametrize("name", VIT_VARIANTS)
def test_last_block_for_the_class_token_only(name):
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=0,
        global_pool="token",
        **VIT_VARIANTS[name],
    ).eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    assert is_standard(vit)
    deployed = deployed_vit(vit, torch.rand(2, 3, 32, 32))
    assert isinstance(deployed, DeployedViT)
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        gap = float((deployed(x) - vit(x)).abs().max() / vit(x).abs().max())
    assert gap < 5e-6
    assert deployed.trace(x).attention.shape == (3, 3, 1, deployed.table.shape[1])


@pytest.mark.parametrize("option", ["ResPostBlock", "ParallelScalingBlock"])
def test_other_blocks_are_exported_as_they_are(option):
    vit = VisionTransformer(
        img_size=32,
        patch_size=16,
        embed_dim=16,
        depth=1,
        num_heads=2,
        num_classes=0,
        block_fn=getattr(timm.models.vision_transformer, option),
    ).eval()
    assert not is_standard(vit)
    deployed = deployed_vit(vit, torch.rand(2, 3, 32, 32))
    assert isinstance(deployed, PlainViT)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(deployed(x), vit(x))


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_convnext", "test_nfnet", "test_byobnet"]
)
def test_batch_norms_fold_into_any_cnn(name):
    torch.manual_seed(0)
    cnn = timm.create_model(name, num_classes=0, global_pool="avg").eval()
    norms = [m for m in cnn.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
        x = torch.rand(2, 3, 64, 64)
        expected = cnn(x)
        deployed = DeployedCnn(cnn, x)
        got = deployed(x)
    left = [m for m in deployed.modules() if isinstance(m, (nn.BatchNorm2d, BatchNormAct2d))]
    assert not left
    gap = float((got - expected).abs().max() / expected.abs().max())
    assert gap < 1e-5


def test_a_convolution_used_twice_is_not_folded():
    conv, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv, norm

        def forward(self, x):
            return self.norm(self.conv(x)) + self.conv(x)

    network = Twice().eval()
    assert fold_batch_norms(network, torch.rand(1, 3, 4, 4)) == 0
    assert isinstance(network.norm, nn.BatchNorm2d)
