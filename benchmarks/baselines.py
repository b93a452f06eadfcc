"""The baselines: other ways to run the hybrid, each as its users would write it.

A baseline is a function that loads a model and returns a Runner. It runs in a process of its own
(see worker.py). Libraries are imported in the functions, so that load times include them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Logits = np.ndarray


@dataclass
class Runner:
    """A loaded model.

    Attributes:
        pixels: Returns the logits of uint8 ``[batch, height, width, 3]``.
        files: Returns the logits of image files.
        many: Returns the logits of a list of batches in order, run side by side.
        facts: The library, device and precision in use.
    """

    pixels: Callable[[np.ndarray], Logits]
    files: Callable[[Sequence[str]], Logits]
    many: Callable[[Sequence[np.ndarray]], list[Logits]] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    ``needs`` are files in the model folder; ``gpu`` rows need an NVIDIA GPU. ``precision`` (fp32,
    bf16, fp16 or int8) selects the tolerances of the row's logits.
    """

    name: str
    load: Callable[[Path], Runner]
    ours: bool = False
    gpu: bool = False
    needs: tuple[str, ...] = ()
    precision: str = "fp32"


def files_to_batch(size: tuple[int, int]) -> Callable[[Sequence[str]], np.ndarray]:
    """Return a loader by PIL and torchvision, as in the original notebook: float32 NCHW."""
    import torch
    from PIL import Image
    from torchvision import transforms

    from hybrid_rt.spec import IMAGENET_MEAN, IMAGENET_STD

    transform = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def load(paths: Sequence[str]) -> np.ndarray:
        images = []
        for path in paths:
            with Image.open(path) as image:
                images.append(transform(image.convert("RGB")))
        return torch.stack(images).numpy()

    return load


def pixels_to_batch(images: np.ndarray) -> np.ndarray:
    """Return resized pixels normalized in NumPy: float32 NCHW."""
    from hybrid_rt.spec import IMAGENET_MEAN, IMAGENET_STD

    x = images.astype(np.float32) / 255.0
    x = (x - np.asarray(IMAGENET_MEAN, np.float32)) / np.asarray(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))  # NHWC -> NCHW


def image_size(folder: Path) -> tuple[int, int]:
    """Return the model's height and width."""
    preprocess = json.loads((folder / "model.json").read_text())["spec"]["preprocess"]
    return preprocess["height"], preprocess["width"]


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def torch_runner(
    folder: Path, *, device: str = "cpu", dtype: str | None = None, compile_mode: str | None = None
) -> Runner:
    """Load PyTorch: eager, under autocast (on a GPU with weights of that type), or compiled.

    Its input is normalized outside the network, as users do.
    """
    import torch

    from hybrid_train.model.checkpoint import load_checkpoint

    hybrid, _ = load_checkpoint(folder / "checkpoint")
    # The network as a user writes it takes normalized images.
    hybrid.vit_norm = torch.nn.Identity()
    hybrid.cnn_norm = torch.nn.Identity()
    model = hybrid.eval().to(device)
    if dtype is not None:
        model = model.to(memory_format=torch.channels_last)
    network: Callable[[torch.Tensor], torch.Tensor] = model
    if compile_mode is not None:
        network = torch.compile(model, mode=None if compile_mode == "default" else compile_mode)
    half = getattr(torch, dtype) if dtype else torch.float32
    autocast = dtype is not None and device == "cpu"
    if dtype is not None and not autocast:
        model = model.to(half)

    @torch.inference_mode()
    def run(batch: np.ndarray) -> Logits:
        x = torch.from_numpy(batch).to(device)
        if dtype is not None:
            x = x.to(x.dtype if autocast else half, memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=half, enabled=autocast):
            return network(x).float().cpu().numpy()

    load = files_to_batch(image_size(folder))
    facts = {
        "library": f"torch {torch.__version__}",
        "device": device,
        "precision": dtype or "float32",
        "compile": compile_mode,
        "threads": torch.get_num_threads(),
    }
    if device != "cpu":
        facts["transfers"] = "included"
    return Runner(
        pixels=lambda images: run(pixels_to_batch(images)),
        files=lambda paths: run(load(paths)),
        facts=facts,
    )


def ort_runner(folder: Path, *, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Runner:
    """Load ONNX Runtime on the plain export with default options."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(folder / "plain.onnx"), providers=list(providers))
    if session.get_providers()[0] != providers[0]:
        raise RuntimeError(f"asked for {providers[0]}, got {session.get_providers()}")
    name = session.get_inputs()[0].name
    load = files_to_batch(image_size(folder))

    def run(batch: np.ndarray) -> Logits:
        return session.run(None, {name: batch})[0]

    return Runner(
        pixels=lambda images: run(pixels_to_batch(images)),
        files=lambda paths: run(load(paths)),
        facts={
            "library": f"onnxruntime {ort.__version__}",
            "device": session.get_providers()[0],
            **({} if len(providers) == 1 else {"transfers": "included"}),
        },
    )


def openvino_runner(folder: Path, *, hint: str | None = None) -> Runner:
    """Load OpenVINO on the plain dynamic export, with default settings or a performance hint."""
    import openvino as ov

    core = ov.Core()
    config = {"PERFORMANCE_HINT": hint} if hint else {}
    compiled = core.compile_model(str(folder / "plain.onnx"), "CPU", config)
    request = compiled.create_infer_request()
    load = files_to_batch(image_size(folder))

    def run(batch: np.ndarray) -> Logits:
        return request.infer([batch])[0].copy()

    def many(batches: Sequence[np.ndarray]) -> list[Logits]:
        results: list[Logits] = [np.empty(0)] * len(batches)
        queue = ov.AsyncInferQueue(compiled)

        def keep(finished: Any, index: int) -> None:
            results[index] = finished.get_output_tensor(0).data.copy()

        queue.set_callback(keep)
        for i, images in enumerate(batches):
            queue.start_async([pixels_to_batch(images)], userdata=i)
        queue.wait_all()
        return results

    facts = {
        "library": f"openvino {ov.__version__.split('-')[0]}",
        "device": "CPU",
        "precision": str(compiled.get_property("INFERENCE_PRECISION_HINT")),
        "streams": int(compiled.get_property("NUM_STREAMS")),
        "hint": hint or "default",
    }
    return Runner(
        pixels=lambda images: run(pixels_to_batch(images)),
        files=lambda paths: run(load(paths)),
        many=many if hint == "THROUGHPUT" else None,
        facts=facts,
    )
