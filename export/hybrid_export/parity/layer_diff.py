"""Which layers of an exported file differ from PyTorch, and where the difference starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_export.onnx_graph.evaluator import RoundingEvaluator
from hybrid_export.parity.tolerances import PrecisionName
from hybrid_export.precision.half import in_module

#: Relative errors of a layer's output beyond which it is named.
_NOTABLE: dict[PrecisionName, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 6e-2, "int8": 0.25}


@dataclass(frozen=True)
class LayerGap:
    """A module of the deployment graph and its output's relative error, |got - want| / |want|."""

    module: str
    error: float

    def __str__(self) -> str:
        return f"{self.module} (relative error {self.error:.1e})"


def compare_layers(graph: nn.Module, model: Any, images: NDArray[np.uint8]) -> list[LayerGap]:
    """Return the relative error of every module's output in an ONNX model, in the graph's order."""
    expected = _module_outputs(graph, images)
    made_by: dict[str, str] = {}  # name of a value -> module; the module's last value wins
    for module in expected:
        nodes = [node for node in model.graph.node if in_module(node, module)]
        if nodes:
            made_by[nodes[-1].output[0]] = module
    gaps: dict[str, LayerGap] = {}

    def observe(name: str, value: Tensor) -> None:
        module = made_by.get(name)
        if module is None or value.shape != expected[module].shape:
            return
        want = expected[module]
        error = float((value - want).norm() / want.norm().clamp_min(1e-12))
        gaps[module] = LayerGap(module, error if np.isfinite(error) else float("inf"))

    RoundingEvaluator(model).run(images, observe)
    return list(gaps.values())


def describe_layers(
    graph: nn.Module, model: Any, images: NDArray[np.uint8], precision: PrecisionName
) -> str:
    """Return one sentence: the first layer that is notably off, and where the error grows most."""
    gaps = compare_layers(graph, model, images)
    first = next((gap for gap in gaps if gap.error > _NOTABLE[precision]), None)
    growth = sorted(
        zip(gaps[1:], gaps, strict=False), key=lambda pair: pair[0].error / (pair[1].error + 1e-9)
    )
    worst = [str(gap) for gap, _ in growth[::-1][:3]]
    start = f"first layer that differs: {first}; " if first else ""
    return f"{start}largest jumps: {', '.join(worst)}"


def _module_outputs(graph: nn.Module, images: NDArray[np.uint8]) -> dict[str, Tensor]:
    """Return the outputs of the modules of the graph in fp32, by name."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for name, module in graph.named_modules():
        if name:

            def keep(_module: nn.Module, _args: object, output: object, name: str = name) -> None:
                if isinstance(output, Tensor):
                    outputs[name] = output.clone()  # an activation may overwrite it in place

            handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            graph(torch.from_numpy(np.ascontiguousarray(images)))
    finally:
        for handle in handles:
            handle.remove()
    return outputs
