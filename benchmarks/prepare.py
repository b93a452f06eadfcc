"""The benchmarks' model and images, made once and kept under .cache/benchmarks.

    python -m benchmarks.prepare --preset full

The network has random weights: speed does not depend on them. Only its last layer is fitted, by
least squares, to separate four kinds of image. With random weights there all images would have
nearly the same logits, and parity would be measured on rounding noise.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import shutil
import sys
from pathlib import Path

import numpy as np

PRESETS = {
    "full": {"vit": "vit_base_patch16_224", "cnn": "resnet50", "size": 224, "image_size": 1024},
    "tiny": {"vit": "vit_tiny_patch16_224", "cnn": "resnet10t", "size": 64, "image_size": 256},
}
CLASSES = ("phantom", "negative", "noise", "stripes")
IMAGES = 32


def prepared(preset: str, root: Path = Path(".cache/benchmarks")) -> Path:
    """Return the folder with the model of ``preset``; make it if it is missing or out of date."""
    folder = root / f"{preset}-{fingerprint()}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(preset, folder)
        (folder / "done").touch()
    return folder


def fingerprint() -> str:
    """Return a digest of the sources that make the files, the libraries' versions and the GPU."""
    from importlib.metadata import PackageNotFoundError, version

    top = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    sources = [
        "export/hybrid_export",
        "train/hybrid_train/model/hybrid.py",
        "benchmarks/prepare.py",
    ]
    for source in sources:
        path = top / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    for library in ("torch", "timm", "onnx", "onnxruntime", "openvino", "tensorrt"):
        try:
            digest.update(version(library).encode())
        except PackageNotFoundError:
            digest.update(b"-")
    digest.update(gpu_name().encode())
    return digest.hexdigest()[:12]


def gpu_name() -> str:
    """Return the name of the GPU that PyTorch would use, or an empty string."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def make(preset: str, folder: Path) -> None:
    """Make images, a checkpoint, the plain export of the baselines, and the bundle."""
    import torch

    from hybrid_export.cli import main as export
    from hybrid_rt.images import load_batch
    from hybrid_train.model.checkpoint import save_checkpoint

    sizes = PRESETS[preset]
    print(f"preparing the {preset} model under {folder}", file=sys.stderr, flush=True)
    paths = write_images(folder / "files", IMAGES, sizes["image_size"])
    model, spec = make_model(sizes)
    pixels = load_batch(paths, spec.preprocess)
    np.save(folder / "images.npy", pixels)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255  # NHWC -> NCHW
    fit_last_layer(model, images)
    with torch.inference_mode():
        np.save(folder / "reference.npy", model(images).numpy())
    (folder / "checkpoint").mkdir()
    save_checkpoint(folder / "checkpoint" / "best.safetensors", model, spec)
    plain_export(model, images[:2], folder / "plain.onnx")
    arguments = [str(folder / "checkpoint"), "--output", str(folder / "bundle")]
    arguments += ["--bf16", "--int8", "--calibrate", str(folder / "files")]
    arguments += ["--verify", str(folder / "files")]
    # With a GPU the FP16 plan too; without TensorRT the export logs that it is not installed.
    arguments += ["--fp16"] if torch.cuda.is_available() else ["--no-tensorrt"]
    explained = [str(folder / "checkpoint"), "--output", str(folder / "explained"), "--explain"]
    explained += ["--no-tensorrt", "--verify", str(folder / "files")]
    if export(arguments) != 0 or export([*explained, "--verify-limit", "8"]) != 0:
        raise SystemExit("the export failed; its message is above")
    (folder / "model.json").write_text((folder / "bundle" / "model.json").read_text())


def make_model(sizes: dict) -> tuple:
    """Return the hybrid of a preset with random weights, and its spec."""
    import torch

    from hybrid_rt.spec import Head, ModelSpec, Preprocess
    from hybrid_train.model.hybrid import HybridClassifier, describe_branches

    size = (sizes["size"], sizes["size"])
    vit, cnn = describe_branches(sizes["vit"], sizes["cnn"], size)
    spec = ModelSpec(
        classes=CLASSES,
        preprocess=Preprocess(height=size[0], width=size[1]),
        vit=vit,
        cnn=cnn,
        head=Head(),
        task="BIRADS",
        provenance={"weights": "random, seed 0; for benchmarks"},
    )
    torch.manual_seed(0)
    return HybridClassifier(spec).eval(), spec


def fit_last_layer(model: object, images: object) -> None:
    """Fit +2 for an image's kind and -2 for the others, from the last hidden layer, in place.

    Image i is of kind i modulo 4. Least squares with a small ridge, so that the weights do not fit
    rounding.
    """
    import torch

    with torch.inference_mode():
        hidden = model.head[:-1](model.forward_features(images)).double()  # [n, hidden]
    kinds = torch.arange(len(images)) % len(CLASSES)
    wanted = torch.nn.functional.one_hot(kinds, len(CLASSES)).double() * 4 - 2
    mean = hidden.mean(0)
    centred = hidden - mean
    gram = centred.T @ centred
    ridge = 5e-2 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weight = torch.linalg.solve(gram + ridge, centred.T @ (wanted - wanted.mean(0))).T
    with torch.no_grad():
        model.head[-1].weight.copy_(weight)
        model.head[-1].bias.copy_(wanted.mean(0) - weight @ mean)


def plain_export(model: object, images: object, path: Path) -> None:
    """Export the bare network as users do, by torch.onnx.export: float NCHW in, logits out."""
    import copy

    import torch

    from benchmarks.baselines import quiet

    bare = copy.deepcopy(model)
    bare.vit_norm = torch.nn.Identity()
    bare.cnn_norm = torch.nn.Identity()
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            bare,
            (images,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
        )


def write_images(folder: Path, count: int, size: int) -> list[Path]:
    """Write ``count`` square JPEG files: a phantom, its negative, noise and stripes, in turn."""
    from PIL import Image

    from hybrid_train.phantom import generate

    folder.mkdir(parents=True)
    phantoms = generate(count, seed=7, size=512)
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:512, 0:512]
    paths = []
    for index in range(count):
        kind = CLASSES[index % len(CLASSES)]
        if kind == "noise":
            pixels = rng.integers(0, 256, (64, 64), np.uint8)
        elif kind == "stripes":
            wave = np.sin((x * np.cos(index) + y * np.sin(index)) / (6 + index % 5))
            pixels = (127 + 120 * wave).astype(np.uint8)
        else:
            pixels = np.asarray(next(phantoms)["image"])
            pixels = 255 - pixels if kind == "negative" else pixels
        path = folder / f"{index:03}.jpg"
        image = Image.fromarray(pixels).convert("RGB")
        image.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the benchmarks' model and images.")
    parser.add_argument("--preset", choices=PRESETS, default="full")
    print(prepared(parser.parse_args().preset))
