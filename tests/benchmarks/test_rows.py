"""The baselines of a row, each written as its users write it."""

import numpy as np
import pytest

from benchmarks.arena import baselines_of
from benchmarks.rows import CUDA, EAGER, HINTED, PLAIN, ROWS, RUNTIME


def test_a_row_is_compared_with_its_like():
    assert baselines_of("batch 1", "hybrid-rt int8") == [EAGER, RUNTIME, PLAIN]
    assert baselines_of("offline", "hybrid-rt bf16, throughput") == [EAGER, HINTED]
    assert baselines_of("batch 8", "hybrid-rt fp32, heatmaps") == ["hybrid-rt fp32"]
    assert baselines_of("offline", "hybrid-rt TensorRT fp16") == CUDA
    assert CUDA[0] not in baselines_of("batch 1", CUDA[0])
    assert all(baselines_of("batch 1", row) for row in ROWS)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_pytorch_s_rows_equal_the_network_s_logits(tmp_path, dtype):
    import torch

    from benchmarks.baselines import torch_runner
    from factories.tiny_hybrid import make_model
    from hybrid_train.model.checkpoint import save_checkpoint

    model, spec = make_model()
    (tmp_path / "checkpoint").mkdir()
    save_checkpoint(tmp_path / "checkpoint" / "best.safetensors", model, spec)
    (tmp_path / "model.json").write_text(f'{{"spec": {spec.to_json()}}}')
    size = (2, spec.preprocess.height, spec.preprocess.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    with torch.inference_mode():
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255  # NHWC -> NCHW
        expected = model.eval()(images).numpy()
    logits = torch_runner(tmp_path, dtype=dtype).pixels(pixels)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5 if dtype is None else 0.1)
