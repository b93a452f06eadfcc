"""The network of the original notebook at full size: ViT-B/16 + ResNet50, 224 pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from factories.tiny_hybrid import enliven
from hybrid_export.cli import main
from hybrid_export.network.saliency_reference import heatmaps
from hybrid_export.sessions import PyTorchSession, open_file
from hybrid_rt.bundle.manifest import Bundle
from hybrid_rt.spec import Head, ModelSpec, Preprocess
from hybrid_rt.tensorrt.builder.build_engine import why_no_engine
from hybrid_train.model.checkpoint import save_checkpoint
from hybrid_train.model.hybrid import HybridClassifier, describe_branches

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def settle(model: HybridClassifier) -> None:
    """Head units that are on or off by far: rounding must not decide it, or their gradients go."""
    with torch.no_grad():
        for layer in model.head[:-1]:
            if isinstance(layer, torch.nn.Linear):
                layer.bias.copy_(torch.randn_like(layer.bias).sign() * 1.5)
        model.head[-1].weight.mul_(10)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The network, and its export with everything that is quick."""
    folder = tmp_path_factory.mktemp("full")
    vit, cnn = describe_branches("vit_base_patch16_224", "resnet50", (224, 224))
    spec = ModelSpec(
        classes=("0", "1", "2", "3"), preprocess=Preprocess(), vit=vit, cnn=cnn, head=Head()
    )
    torch.manual_seed(0)
    model = HybridClassifier(spec).eval()
    enliven(model, spec, gain=0.5, residual=0.3)
    settle(model)
    save_checkpoint(folder / "best.safetensors", model, spec)
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(8):
        coarse = rng.integers(0, 256, (4 + i, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((300, 260)).save(folder / "images" / f"{i}.png")
    plans = ["--no-tensorrt"]
    if why_no_engine("tensorrt_rtx", ahead_of_time=True) is None:
        plans = ["--tensorrt-rtx", "SM89"]
    arguments = [str(folder / "best.safetensors"), "--output", str(folder / "out"), "--explain"]
    assert main([*arguments, "--verify", str(folder / "images"), "--fp16", *plans]) == 0
    return folder / "out", model, plans


def images() -> np.ndarray:
    """Two smooth images; on noise all features nearly cancel in the heatmaps' sums."""
    rng = np.random.default_rng(1)
    coarse = [rng.integers(0, 256, (5, 4 + i, 3), dtype=np.uint8) for i in range(2)]
    return np.stack([np.asarray(Image.fromarray(c).resize((224, 224))) for c in coarse])


def test_fp32_equals_pytorch(full):
    output, model, _ = full
    spec = Bundle.load(output).spec
    expected = PyTorchSession(model, spec).run(images())
    got = open_file(output / "model.onnx", spec).run(images())
    gap = float(np.abs(got["logits"] - expected["logits"]).max())
    assert gap <= 1e-4, gap
    assert (got["logits"].argmax(1) == expected["logits"].argmax(1)).all()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_heatmaps_equal_autograd(full, backend):
    output, model, _ = full
    expected = heatmaps(model, images())
    got = open_file(output / "model.onnx", Bundle.load(output).spec, backend).run(images())
    for name, values in expected.items():
        gap = float(np.abs(got[name] - values).max() / values.max())
        assert gap <= 1e-4, f"{name}: {gap}"


def test_fp16_is_half_the_size_and_validated(full):
    output, _, plans = full
    bundle = Bundle.load(output)
    fp32, fp16 = bundle.files["model.onnx"], bundle.files["model.fp16.onnx"]
    assert fp16.validated
    assert fp16.parity_report["features_cosine_min"] >= 0.9999
    assert fp16.parity_report["heatmaps_correlation"] >= 0.99
    assert fp16.dtype_report["weight_share"]["float16"] >= 0.95
    assert fp16.bytes < 0.52 * fp32.bytes
    if plans[0] == "--no-tensorrt":
        pytest.skip("TensorRT for RTX is not installed: no engine was built")
    plan = bundle.files["model.sm89.plan"]
    assert plan.dtype_report["weight_share"]["float16"] >= 0.95
    assert plan.bytes < 0.6 * fp32.bytes
