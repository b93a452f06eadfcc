"""Training throughput: hybrid-train's loop beside a plain PyTorch loop on torchvision's networks.

    pytest benchmarks/test_training.py -s [--preset tiny]

Both train the same number of equal images from memory, in turn, round by round. "tiny" compares
the tiny preset's two timm networks in both loops; "full" puts torchvision's vit_b_16 and resnet50
on the plain side.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

SIZES = {"full": (224, 8, 3), "tiny": (160, 16, 6)}  # pixels, batch, batches per round
ROUNDS = 3


@pytest.fixture(scope="module")
def samples_in_memory(preset):
    """Training and validation images, in memory, with labels."""
    size, batch, batches = SIZES[preset]
    rng = np.random.default_rng(0)
    count = batch * batches + 8
    return rng.integers(0, 256, (count, size, size, 3), np.uint8), np.arange(count) % 2


def ours(preset: str, images: np.ndarray, labels: np.ndarray, folder: Path) -> float:
    """Return images per second of hybrid-train's loop at its defaults, from its own log."""
    from hybrid_train.config import PRESETS
    from hybrid_train.data.loader import ImageDataset
    from hybrid_train.data.samples import Samples
    from hybrid_train.data.splits import Split
    from hybrid_train.loop.distributed import join_processes
    from hybrid_train.loop.trainer import Trainer
    from hybrid_train.model.initialize import choose_start, make_model

    size, batch, _ = SIZES[preset]
    config = PRESETS["base" if preset == "full" else "tiny"].replace(
        epochs=1, batch_size=batch, image_size=size
    )
    samples = Samples(
        origin="benchmark",
        task="benchmark",
        classes=("a", "b"),
        labels=labels.astype(np.int64),
        source=list(images).__getitem__,
        names=[str(i) for i in range(len(images))],
    )
    start = choose_start(config)
    table = ImageDataset(samples, start.preprocess)
    table.decode_all(1e10)
    folder.mkdir(exist_ok=True)
    every = np.arange(len(images))
    split = Split(train=every[8:], val=every[:8], test=every[:0])
    with join_processes() as processes:
        model, spec = make_model(samples, start, config)
        trainer = Trainer(model, spec, config, table, split, folder, processes, lambda _: None)
        assert trainer.run()
    return float(trainer.progress.history[-1]["images_per_s"])


def plain_network(preset: str):
    """Return the notebook's model on torchvision's networks, or on the tiny preset's from timm."""
    import timm
    import torchvision
    from torch import cat, nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if preset == "full":
                self.vit = torchvision.models.vit_b_16(weights=None)
                self.vit.heads = nn.Identity()
                self.cnn = torchvision.models.resnet50(weights=None)
                self.cnn.fc = nn.Identity()
                width = 2816
            else:
                self.vit = timm.create_model("test_vit", num_classes=0, img_size=160)
                self.cnn = timm.create_model("test_resnet", num_classes=0)
                width = self.vit.num_features + self.cnn.num_features
            self.head = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 2))

        def forward(self, x):
            return self.head(cat((self.vit(x), self.cnn(x)), dim=1))

    return Plain()


def plain(preset: str, images: np.ndarray, labels: np.ndarray, *, autocast: bool) -> float:
    """Return images per second of the loop of tutorials: Dataset, DataLoader, AdamW."""
    import torch
    from PIL import Image
    from torchvision import transforms

    from hybrid_rt.spec import IMAGENET_MEAN, IMAGENET_STD

    _, batch, _ = SIZES[preset]
    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    class Memory(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images) - 8

        def __getitem__(self, index: int):
            return transform(Image.fromarray(images[index + 8])), int(labels[index + 8])

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = plain_network(preset).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loader = torch.utils.data.DataLoader(Memory(), batch_size=batch, shuffle=True)
    started = time.perf_counter()
    for x, y in loader:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            loss = torch.nn.functional.cross_entropy(model(x.to(device)), y.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return (len(images) - 8) / (time.perf_counter() - started)


def test_training_throughput(preset, samples_in_memory, tmp_path, benchmark, pytestconfig):
    images, labels = samples_in_memory
    rates: dict[str, list[float]] = {"ours": [], "plain fp32": [], "plain autocast bf16": []}

    def one_round() -> None:
        rates["plain fp32"].append(plain(preset, images, labels, autocast=False))
        rates["plain autocast bf16"].append(plain(preset, images, labels, autocast=True))
        rates["ours"].append(ours(preset, images, labels, tmp_path / "run"))

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=1)
    rates = {name: values[1:] for name, values in rates.items()}  # without the warm-up
    ratios = {
        name: float(np.median(np.asarray(rates["ours"]) / np.asarray(values)))
        for name, values in rates.items()
        if name != "ours"
    }
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    benchmark.extra_info.update(images_per_s=medians, ours_over=ratios)
    print("\nimages/s:", {n: round(v, 1) for n, v in medians.items()})
    print("ours over:", {n: round(v, 2) for n, v in ratios.items()})
