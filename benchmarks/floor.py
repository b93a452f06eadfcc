"""What the machine can do: its matrix-product rate and memory bandwidth, measured, and the work.

A row's share of the floor is the time the model's operations would take at the measured rate,
divided by the time the row took. 1.0 would be a perfect implementation.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np


def matmul_rate(dtype: str, *, size: int = 2048, seconds: float = 1.5) -> float:
    """Operations a second (2 per multiply-add) of PyTorch's own square matrix product.

    ``dtype`` is "float32", "bfloat16" or "int8" (an int8 linear layer through oneDNN).
    """
    import torch

    if dtype == "int8":
        return _int8_rate(size, seconds)
    a = torch.randn(size, size, dtype=getattr(torch, dtype))
    b = torch.randn(size, size, dtype=getattr(torch, dtype))
    out = torch.empty_like(a)
    return 2 * size**3 / _best(lambda: torch.mm(a, b, out=out), seconds)


def _int8_rate(size: int, seconds: float) -> float:
    import torch

    a = torch.randint(-64, 64, (size, size), dtype=torch.int8)
    b = torch.randint(-64, 64, (size, size), dtype=torch.int8)
    return 2 * size**3 / _best(lambda: torch._int_mm(a, b), seconds)


def copy_bandwidth(*, megabytes: int = 512, seconds: float = 1.0) -> float:
    """Bytes a second, read plus written, of a large copy on all threads."""
    import torch

    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _best(lambda: target.copy_(source), seconds)


def _best(call: Any, seconds: float) -> float:
    """The shortest of the repeats that fit in ``seconds``: a floor wants the best case."""
    call()
    best, end = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return float(best)


def count_operations(path: Path, batch: int = 1) -> dict[str, float]:
    """Operations (2 a multiply-add) of an ONNX file's MatMul, Gemm and Conv, and weight bytes."""
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
