"""The machine's rates and the model's operations, measured in the same run as the rows."""

from __future__ import annotations

from benchmarks.prepare import gpu_name
from benchmarks.roofline import CUDA_TYPES, TYPES, copy_bandwidth, count_operations, matmul_rate


def test_roofline(arena, folder, preset):
    arena.keep_only(())
    work = count_operations(folder / "plain.onnx")
    roofline = {f"{d}_operations_per_s": matmul_rate(d) for d in TYPES}
    roofline["bytes_per_s"] = copy_bandwidth()
    if gpu_name():
        for dtype in CUDA_TYPES:
            roofline[f"cuda_{dtype}_operations_per_s"] = matmul_rate(dtype, device="cuda")
        roofline["cuda_bytes_per_s"] = copy_bandwidth(device="cuda")
    roofline |= work
    arena.extra["roofline"] = roofline
    assert all(value > 0 for value in roofline.values()), roofline
    if preset == "full":  # ViT-B/16 is 35 GFLOP and ResNet50 8.2 at 224 px
        assert 4.2e10 < work["operations"] < 4.5e10
