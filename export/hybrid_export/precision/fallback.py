"""What to keep in FP32 when a half-precision file fails: a little more with every attempt.

First only what a run on real images shows to leave FP16's range; then the residual additions,
which collect every layer's rounding; then the head; then the modules that harm the logits most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from hybrid_export.onnx_graph.evaluator import Interpreter
from hybrid_export.precision.half import HalfName, in_module, residual_additions, scope, to_half

#: Values of a quarter of FP16's largest number leave no room for images that are unlike these.
_RANGE = {"fp16": 65504 / 4, "bf16": float("inf")}
_SENSITIVITY_IMAGES = 4


@dataclass(frozen=True)
class Attempt:
    """Names of the nodes that stay in FP32, and how to tell a person which they are."""

    nodes: frozenset[str]
    kept: tuple[str, ...]


def attempts(
    model: Any, precision: HalfName, images: NDArray[np.uint8], modules_allowed: int = 3
) -> Iterator[Attempt]:
    """Attempts for an fp32 model, each keeping more; later ones are measured when asked for."""
    large = out_of_range(model, images, _RANGE[precision])
    labels = [f"values beyond {_RANGE[precision]:.0f} ({len(large)} operators)"] if large else []
    yield Attempt(frozenset(large), tuple(labels))
    nodes = large | residual_additions(model)
    labels = [*labels, "residual additions"]
    yield Attempt(frozenset(nodes), tuple(labels))
    nodes = nodes | nodes_of(model, "head")
    labels = [*labels, "head"]
    yield Attempt(frozenset(nodes), tuple(labels))
    ranked = [unit for unit, _ in sensitivity(model, precision, images) if unit != "head"]
    for unit in ranked[:modules_allowed]:
        nodes = nodes | nodes_of(model, unit)
        labels = [*labels, unit]
        yield Attempt(frozenset(nodes), tuple(labels))


def out_of_range(model: Any, images: NDArray[np.uint8], limit: float) -> set[str]:
    """Names of the nodes that read or make a value beyond the limit, or have such a weight."""
    if not np.isfinite(limit):
        return set()
    large = {
        t.name
        for t in model.graph.initializer
        if t.data_type == t.FLOAT and np.abs(numpy_helper.to_array(t)).max(initial=0) > limit
    }

    def observe(name: str, value: Tensor) -> None:
        if value.is_floating_point() and not bool((value.abs() <= limit).all()):
            large.add(name)

    Interpreter(model).run(images, observe)
    return {
        node.name
        for node in model.graph.node
        if large.intersection(node.input) or large.intersection(node.output)
    }


def sensitivity(
    model: Any, precision: HalfName, images: NDArray[np.uint8]
) -> list[tuple[str, float]]:
    """How far the logits move when one module alone is in half precision, worst first."""
    images = images[:_SENSITIVITY_IMAGES]
    expected = Interpreter(model).run(images)["logits"]
    found = []
    for unit in units(model):
        inside = nodes_of(model, unit)
        others = {node.name for node in model.graph.node} - inside
        got = Interpreter(to_half(model, precision, others)).run(images)["logits"]
        error = float(np.abs(got - expected).mean())
        found.append((unit, error if np.isfinite(error) else float("inf")))
    return sorted(found, key=lambda pair: -pair[1])


def units(model: Any) -> list[str]:
    """Modules of a size to decide about: blocks of the ViT, stages of the CNN, the head."""
    found: dict[str, None] = {}
    for node in model.graph.node:
        names = scope(node).split(".")
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            depth = {"head": 1, "vit": 3 if "blocks" in names else 2, "cnn": 3}.get(names[0], 1)
            found[".".join(names[:depth])] = None
    return list(found)


def nodes_of(model: Any, module: str) -> set[str]:
    """Names of the nodes inside a module."""
    return {node.name for node in model.graph.node if in_module(node, module)}
