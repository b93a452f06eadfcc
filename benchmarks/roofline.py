"""The machine's matrix-product rate and memory bandwidth, measured, and the model's operations.

A row's share of the roofline is the time of the model's operations at the measured rate, divided by
the row's time. At 1.0 the row computes at the machine's full rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TYPES = ("float32", "bfloat16", "int8")
CUDA_TYPES = ("float32", "float16", "bfloat16", "int8")


def matmul_rate(
    dtype: str,
    *,
    device: str = "cpu",
    sizes: tuple[int, ...] | None = None,
    seconds: float = 1.0,
) -> float:
    """Return the operations per second (2 per multiply-add) of the fastest square matrix product.

    On the CPU the products are PyTorch's (MKL or oneDNN) and, for float32, NumPy's (OpenBLAS) and
    oneDNN's 1x1 convolution, since MKL is not the fastest on every processor. On a GPU they are
    cuBLAS's, and float32 may use TF32.

    Args:
        dtype: One of TYPES, or of CUDA_TYPES with ``device`` "cuda".
        seconds: The time for each size and library.
    """
    if device == "cuda":
        import torch

        calls = [(size, _cuda_product(dtype, size)) for size in sizes or (4096, 8192)]
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return max(2 * size**3 / _best(call, seconds) for size, call in calls)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return max(
        2 * size**3 / _best(call, seconds)
        for size in sizes or (1024, 2048)
        for call in _products(dtype, size)
    )


def _cuda_product(dtype: str, size: int) -> Callable[[], Any]:
    import torch

    multiply: Callable[[Any, Any], Any]
    if dtype == "int8":
        x, y = (torch.randint(-64, 64, (size, size), device="cuda").to(torch.int8) for _ in "xy")
        multiply, y = torch._int_mm, y.t()  # cuBLAS requires the second one transposed
    else:
        x, y = (torch.randn(size, size, device="cuda").to(getattr(torch, dtype)) for _ in "xy")
        multiply = torch.mm

    def call() -> None:
        multiply(x, y)
        torch.cuda.synchronize()

    return call


def _products(dtype: str, size: int) -> list[Callable[[], Any]]:
    import torch

    if dtype == "int8":
        a, b = (torch.randint(-64, 64, (size, size), dtype=torch.int8) for _ in range(2))
        return [lambda: torch._int_mm(a, b)]
    x, y = (torch.randn(size, size, dtype=getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(x)
    products: list[Callable[[], Any]] = [lambda: torch.mm(x, y, out=out)]
    if dtype == "float32":
        pixels = x.view(1, size // 32, 32, size).permute(0, 3, 1, 2)  # channels-last NCHW
        kernel = y.view(size, size, 1, 1)
        left, right, into = x.numpy(), y.numpy(), out.numpy()
        products.append(lambda: np.matmul(left, right, out=into))
        products.append(lambda: torch.nn.functional.conv2d(pixels, kernel))
    return products


def copy_bandwidth(*, device: str = "cpu", megabytes: int = 512, seconds: float = 1.0) -> float:
    """Return the bytes per second, read plus written, of a large copy in the device's memory."""
    import torch

    source = torch.ones(megabytes * 2**20 // 4, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if device != "cpu":
            torch.cuda.synchronize()

    return 2 * source.numel() * 4 / _best(copy, seconds)


def _best(call: Callable[[], Any], seconds: float) -> float:
    """Return the shortest of the repeats that fit in ``seconds``: a roofline is the best case."""
    call()
    best, end = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return float(best)


def count_operations(path: Path, batch: int = 1) -> dict[str, float]:
    """Count an ONNX file's weight bytes, and operations (2 per multiply-add) of products."""
    import onnx
    from onnx import shape_inference

    model = onnx.load(str(path))
    for dimension in model.graph.input[0].type.tensor_type.shape.dim:
        if dimension.dim_param:
            dimension.dim_value = batch
    model = shape_inference.infer_shapes(model, data_prop=True)
    shapes = {
        v.name: [
            d.dim_value if d.HasField("dim_value") else batch for d in v.type.tensor_type.shape.dim
        ]
        for v in [*model.graph.value_info, *model.graph.input, *model.graph.output]
    }
    shapes |= {w.name: list(w.dims) for w in model.graph.initializer}
    operations = 0.0
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        out, left, right = (
            shapes.get(n, []) for n in (node.output[0], node.input[0], node.input[1])
        )
        if node.op_type == "Conv":
            inner = int(np.prod(right[1:]))
        elif node.op_type == "Gemm":
            trans = next((a.i for a in node.attribute if a.name == "transA"), 0)
            inner = left[0] if trans else left[1]
        else:
            inner = left[-1] if left else right[0]
        operations += 2.0 * float(np.prod(out)) * inner
    sizes = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 10: 2, 16: 2}
    weights = sum(
        float(np.prod(w.dims)) * sizes.get(w.data_type, 4) for w in model.graph.initializer
    )
    return {"operations": operations, "weight_bytes": weights}
