"""The original notebook's checkpoints return the notebook's logits."""

import pickle

import pytest
import torch
import torchvision
from torch import nn

from hybrid_rt.errors import CheckpointError
from hybrid_rt.spec import IMAGENET_MEAN, IMAGENET_STD
from hybrid_train.model.checkpoint import load_checkpoint


class Extractor(nn.Module):
    def __init__(self):
        super().__init__()
        self.vit = torchvision.models.vit_b_16(weights=None)
        self.vit.heads = nn.Identity()
        self.resnet = torchvision.models.resnet50(weights=None)
        self.resnet.fc = nn.Identity()

    def forward(self, x):
        return torch.cat((self.vit(x), self.resnet(x)), dim=1)


class Mlp(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Notebook(nn.Module):
    """The notebook's model as described there, built from torchvision."""

    def __init__(self, head):
        super().__init__()
        self.feature_extractor = Extractor()
        if head == "mlp":
            layers, width = [], 2816
            for size in (1024, 512, 256, 128, 64):
                layers += [nn.Linear(width, size), nn.ReLU(), nn.LayerNorm(size), nn.Dropout(0.2)]
                width = size
            self.mlp = Mlp([*layers, nn.Linear(64, 4)])
        else:
            self.mlp = nn.Sequential(nn.Linear(2816, 256), nn.ReLU(), nn.Linear(256, 4))

    def forward(self, x):
        return self.mlp(self.feature_extractor(x))


def random_notebook(head):
    torch.manual_seed(5)
    model = Notebook(head).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    # torchvision starts these at zero, which would hide a wrong name.
    nn.init.normal_(model.feature_extractor.vit.class_token, std=0.02)
    return model


@pytest.mark.parametrize("head", ["mlp", "simple"])
def test_converted_notebook_has_equal_logits(tmp_path, head):
    notebook = random_notebook(head)
    path = tmp_path / "birads_classification_combined_model_vit_resnet50_adamW.pth"
    torch.save(notebook.state_dict(), path)
    model, spec = load_checkpoint(path)
    assert spec.head.kind == head
    assert spec.classes == ("not assessed", "0", "1", "2")
    assert (spec.preprocess.height, spec.preprocess.resize) == (224, "stretch")
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        expected = notebook((images - mean) / std)
        gap = (model(images) - expected).abs().max().item()
    print(f"max_diff={gap:.2e}")
    assert expected.std() > 0.01  # two equal constants would prove nothing
    assert gap <= 1e-4


def small_state():
    state = {f"feature_extractor.vit.{n}": torch.zeros(2) for n in ("class_token",)}
    return state | {"feature_extractor.resnet.conv1.weight": torch.zeros(2)}


def test_unknown_names_are_named(tmp_path):
    torch.save(small_state() | {"mlp.layers.first.weight": torch.zeros(2, 2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"mlp\.layers\.first\.weight; expected mlp"):
        load_checkpoint(tmp_path / "a.pth")


def test_an_unknown_state_dict_says_what_is_expected(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds conv\.weight.*feature_extractor"):
        load_checkpoint(tmp_path / "a.pth")


class Bomb:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"feature_extractor.vit.x": Bomb()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"more than tensors.*state_dict\(\)"):
        load_checkpoint(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "b.pth")
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_file_is_a_checkpoint_error(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        load_checkpoint(tmp_path / "a.pth")
