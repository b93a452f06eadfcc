"""The rows of the tables by name: the baselines (baselines.py) and hybrid-rt's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines import Row, Runner, openvino_runner, ort_runner, torch_runner

#: Suffixes of row names: with a cache of compiled models, and with heatmaps.
CACHED, HEATMAPS = ", cached", ", heatmaps"


def ours(folder: Path, file: str, bundle: str = "bundle", **options: Any) -> Runner:
    """Open this project's runtime on one file of the bundle, as the README does."""
    from hybrid_rt import HybridEngine

    engine = HybridEngine(folder / bundle / file, **options)

    def logits(predictions: Any) -> np.ndarray:
        return np.stack([p.logits for p in predictions])

    def many(batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return [out["logits"] for out in pool.map(engine.run, batches)]

    return Runner(
        pixels=lambda images: engine.run(images)["logits"],
        files=lambda paths: logits(engine.predict(list(paths))),
        many=many if options.get("mode") == "throughput" else None,
        facts={
            **{key: engine.info[key] for key in ("backend", "device", "detail", "precision")},
            **({} if engine.info["device"] == "cpu" else {"transfers": "included"}),
        },
    )


def _own(name: str, file: str, tolerances: str, /, *, gpu: bool = False, **options: Any) -> Row:
    load = partial(ours, file=file, **options)
    needs = (f"bundle/{file or 'model.json'}",)
    return Row(name, load, ours=True, gpu=gpu, needs=needs, precision=tolerances)


def _throughput(kind: str, file: str, **options: Any) -> list[Row]:
    name = f"hybrid-rt {kind}, throughput"
    return [_own(name, file, kind, backend="openvino", mode="throughput", **options)]


CPU_BASELINES = [
    Row("PyTorch eager fp32", torch_runner),
    Row("PyTorch autocast bf16", partial(torch_runner, dtype="bfloat16"), precision="bf16"),
    Row(
        "torch.compile bf16",
        partial(torch_runner, dtype="bfloat16", compile_mode="default"),
        precision="bf16",
    ),
    Row("ONNX Runtime fp32", ort_runner, needs=("plain.onnx",)),
    # OpenVINO computes in bf16 by default on processors that have it.
    Row("OpenVINO default", openvino_runner, needs=("plain.onnx",), precision="bf16"),
    Row(
        "OpenVINO throughput hint",
        partial(openvino_runner, hint="THROUGHPUT"),
        needs=("plain.onnx",),
        precision="bf16",
    ),
]

GPU_BASELINES = [
    Row(
        "PyTorch fp16, CUDA",
        partial(torch_runner, device="cuda", dtype="float16"),
        gpu=True,
        precision="fp16",
    ),
    Row(
        "torch.compile max-autotune fp16, CUDA",
        partial(torch_runner, device="cuda", dtype="float16", compile_mode="max-autotune"),
        gpu=True,
        precision="fp16",
    ),
    Row(
        "ONNX Runtime CUDA",
        partial(ort_runner, providers=("CUDAExecutionProvider", "CPUExecutionProvider")),
        gpu=True,
        needs=("plain.onnx",),
    ),
]

#: Rows without options: the runtime takes the combination that it measured to be the fastest.
ONE_FILE, FOLDER = "hybrid-rt model.onnx, no options", "hybrid-rt folder, no options"

OURS = [
    _own(ONE_FILE, "model.onnx", "bf16"),
    _own(FOLDER, "", "int8"),
    _own("hybrid-rt fp32, ONNX Runtime", "model.onnx", "fp32", backend="onnxruntime"),
    _own("hybrid-rt fp32", "model.onnx", "fp32", backend="openvino", precision="fp32"),
    _own("hybrid-rt bf16", "model.onnx", "bf16", backend="openvino", precision="bf16"),
    *_throughput("bf16", "model.onnx", precision="bf16"),
    _own("hybrid-rt int8", "model.int8.onnx", "int8", backend="openvino"),
    *_throughput("int8", "model.int8.onnx"),
    _own(f"hybrid-rt bf16{CACHED}", "model.onnx", "bf16", precision="bf16", cache=True),
    _own(f"hybrid-rt int8{CACHED}", "model.int8.onnx", "int8", backend="openvino", cache=True),
    Row(
        f"hybrid-rt fp32{HEATMAPS}",
        partial(ours, file="model.onnx", bundle="explained", backend="openvino", precision="fp32"),
        ours=True,
        needs=("explained/model.onnx",),
    ),
    _own("hybrid-rt TensorRT fp16", "model.plan", "fp16", gpu=True, device="cuda:0"),
]

#: The other combinations of file, backend and precision that an export validates on a CPU.
OTHER_COMBINATIONS = [
    _own("hybrid-rt bf16 file", "model.bf16.onnx", "bf16", backend="openvino", precision="bf16"),
    _own("hybrid-rt int8, ONNX Runtime", "model.int8.onnx", "int8", backend="onnxruntime"),
    _own("hybrid-rt int8, rest fp32", "model.int8.onnx", "int8", precision="fp32"),
    _own("hybrid-rt int8, rest bf16", "model.int8.onnx", "int8", precision="bf16"),
]
COMBINATIONS = [
    "hybrid-rt fp32, ONNX Runtime",
    "hybrid-rt fp32",
    "hybrid-rt bf16",
    *(row.name for row in OTHER_COMBINATIONS),
]

CUDA = [row.name for row in GPU_BASELINES]
ROWS = {row.name: row for row in (*CPU_BASELINES, *GPU_BASELINES, *OURS)}
ROWS = ROWS | {row.name: row for row in OTHER_COMBINATIONS}

EAGER, RUNTIME, PLAIN = "PyTorch eager fp32", "ONNX Runtime fp32", "OpenVINO default"
HINTED = "OpenVINO throughput hint"


def why_not(row: Row, folder: Path) -> str | None:
    """Return why a row cannot run here, or None."""
    if row.gpu:
        from hybrid_rt.cuda import cuda_device_count

        if cuda_device_count() == 0:
            return "no NVIDIA GPU"
    for name in row.needs:
        if not (folder / name).exists():
            return f"{name} was not made on this machine"
    return None


def machine_facts() -> dict[str, Any]:
    """Return the processor, its cores and instructions that this process may use, and the GPU."""
    model, flags = "unknown", set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    from benchmarks.prepare import gpu_name

    return {
        "cpu": model,
        "gpu": gpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "amx": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "avx512_vnni": "avx512_vnni" in flags,
    }
