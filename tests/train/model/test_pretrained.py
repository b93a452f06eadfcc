"""timm's weights from files, and the error without hub and files."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from hybrid_rt.errors import CheckpointError, UsageError
from hybrid_rt.spec import Head, ModelSpec, Preprocess
from hybrid_train.model.hybrid import HybridClassifier, describe_branches
from hybrid_train.model.pretrained import load_pretrained, read_pretrained


@pytest.fixture
def hybrid():
    vit, cnn = describe_branches("test_vit", "test_resnet", (64, 64))
    spec = ModelSpec(
        classes=("a", "b"),
        preprocess=Preprocess(height=64, width=64),
        vit=vit,
        cnn=cnn,
        head=Head(hidden=(8,)),
    )
    return HybridClassifier(spec), spec


def write(path, name, **options):
    """A file as the hub has it: with its own classifier, at its own image size."""
    model = timm.create_model(name, **options)
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return model.state_dict()


def load(hybrid, *files):
    model, spec = hybrid
    load_pretrained(model, read_pretrained(spec.vit.model, spec.cnn.model, files))


def test_files_fill_both_backbones(hybrid, tmp_path):
    model, _ = hybrid
    vit = write(tmp_path / "vit.safetensors", "test_vit")  # 160 px: position embedding resampled
    cnn = write(tmp_path / "cnn.pth", "test_resnet")
    head = model.head[0].weight.clone()
    load(hybrid, tmp_path / "vit.safetensors", tmp_path / "cnn.pth")
    assert torch.equal(model.vit.blocks[0].mlp.fc1.weight, vit["blocks.0.mlp.fc1.weight"])
    own = model.cnn.state_dict()
    assert all(torch.equal(own[n], cnn[n]) for n in own)
    assert torch.equal(model.head[0].weight, head)


def test_files_in_the_wrong_order_are_named(hybrid, tmp_path):
    write(tmp_path / "vit.pth", "test_vit")
    write(tmp_path / "cnn.pth", "test_resnet")
    with pytest.raises(CheckpointError, match=r"cnn\.pth (lacks|has another shape)"):
        load(hybrid, tmp_path / "cnn.pth", tmp_path / "vit.pth")


def test_one_file_is_a_usage_error(hybrid, tmp_path):
    with pytest.raises(UsageError, match=r"expected none \(the hub\) or two"):
        load(hybrid, tmp_path / "vit.pth")


def test_download_without_network_proposes_files(hybrid):
    with pytest.raises(CheckpointError, match="--pretrained VIT_FILE CNN_FILE"):
        load(hybrid)
