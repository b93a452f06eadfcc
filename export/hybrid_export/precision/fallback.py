"""What stays in FP32 when a file of lower precision fails: more with every attempt.

One search for every precision: fixed steps first, then the modules that move the logits most.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from hybrid_export.onnx_graph.evaluator import RoundingEvaluator
from hybrid_export.precision.half import HalfName, in_module, residual_additions, scope
from hybrid_export.precision.quantize import layers
from hybrid_rt.errors import ExportError

#: Makes a model of lower precision, in which the nodes of these names stay in FP32.
Lower = Callable[[Collection[str]], Any]

#: Values of a quarter of FP16's largest number leave no room for images that are unlike these.
_RANGE = {"fp16": 65504 / 4, "bf16": float("inf")}
_SENSITIVITY_IMAGES = 4


@dataclass(frozen=True)
class Attempt:
    """Names of the nodes that stay in FP32, and ``kept``, what they are in words."""

    nodes: frozenset[str] = frozenset()
    kept: tuple[str, ...] = ()


def half_attempts(
    model: Any, precision: HalfName, lower: Lower, images: NDArray[np.uint8]
) -> Iterator[Attempt]:
    """Yield what to keep in FP32 of a file in half precision.

    First what leaves FP16's range on real images; then the residual additions, which collect every
    layer's rounding; then the head; then up to three modules.
    """
    large = out_of_range(model, images, _RANGE[precision])
    label = f"values beyond {_RANGE[precision]:.0f} ({len(large)} operators)"
    steps = [
        Attempt(frozenset(large), (label,) if large else ()),
        Attempt(frozenset(residual_additions(model)), ("residual additions",)),
        Attempt(frozenset(nodes_of(model, "head")), ("head",)),
    ]
    return attempts(model, lower, images, steps, counts=(1, 2, 3))


def int8_attempts(model: Any, lower: Lower, images: NDArray[np.uint8]) -> Iterator[Attempt]:
    """Yield what to keep in FP32 of a file in INT8: what always is, then 1, 2, 4, 8, … modules."""
    chosen = quantizable(model)
    if not chosen:
        raise ExportError("the network has no layer that can be quantized; leave --int8 out")
    always = Attempt(frozenset(_names(model) - chosen), tuple(_never_quantized(model)))
    return attempts(model, lower, images, [always], counts=(2**i for i in count()))


def attempts(
    model: Any,
    lower: Lower,
    images: NDArray[np.uint8],
    steps: Sequence[Attempt],
    counts: Iterable[int],
) -> Iterator[Attempt]:
    """Yield attempts that each keep more of an fp32 model: ``steps``, then the worst modules.

    Modules are ranked when the steps are used up; ``counts`` of the worst are kept, never all.
    """
    kept = Attempt()
    for step in steps:
        kept = Attempt(kept.nodes | step.nodes, kept.kept + step.kept)
        yield kept
    ranked = [module for module, _ in sensitivity(model, lower, images, kept.nodes)]
    for number in counts:
        if number >= len(ranked):
            return
        nodes = kept.nodes.union(*(nodes_of(model, module) for module in ranked[:number]))
        yield Attempt(nodes, (*kept.kept, *ranked[:number]))


def sensitivity(
    model: Any, lower: Lower, images: NDArray[np.uint8], kept: Collection[str] = ()
) -> list[tuple[str, float]]:
    """Return how far the logits move if one module alone is in lower precision, worst first.

    Nodes of ``kept`` stay in FP32; a module that they cover is left out.
    """
    images = images[:_SENSITIVITY_IMAGES]
    expected = RoundingEvaluator(model).run(images)["logits"]
    found = []
    for module in units(model):
        inside = nodes_of(model, module) - set(kept)
        if inside:
            got = RoundingEvaluator(lower(_names(model) - inside)).run(images)["logits"]
            error = float(np.abs(got - expected).mean())
            found.append((module, error if np.isfinite(error) else float("inf")))
    return sorted(found, key=lambda pair: -pair[1])


def out_of_range(model: Any, images: NDArray[np.uint8], largest: float) -> set[str]:
    """Return the names of nodes with an input, output or weight beyond ``largest``."""
    if not np.isfinite(largest):
        return set()
    large = {
        t.name
        for t in model.graph.initializer
        if t.data_type == t.FLOAT and np.abs(numpy_helper.to_array(t)).max(initial=0) > largest
    }

    def observe(name: str, value: Tensor) -> None:
        if value.is_floating_point() and not bool((value.abs() <= largest).all()):
            large.add(name)

    RoundingEvaluator(model).run(images, observe)
    return {
        node.name
        for node in model.graph.node
        if large.intersection(node.input) or large.intersection(node.output)
    }


def quantizable(model: Any) -> set[str]:
    """Return the names of nodes to quantize: nearly all of the work, none of the sensitive ends."""
    names = {layer.node.name for layer in layers(model)}
    return names.difference(*(nodes_of(model, module) for module in _never_quantized(model)))


def _never_quantized(model: Any) -> list[str]:
    """Return the modules that INT8 leaves out: 3% of the work, with the most effect on the logits.

    They are the first layer of each branch, what is computed for one token, and the head.
    """
    found = ["vit.patch_embed", "head", "explain_vit"]
    nodes = [layer.node for layer in layers(model)]
    first = next((node for node in nodes if in_module(node, "cnn")), None)
    if first is not None:
        found.append(scope(first))
    blocks = [module for module in units(model) if module.startswith("vit.blocks.")]
    if blocks:
        found += [f"{blocks[-1]}.{name}" for name in ("attn.q", "attn.proj", "mlp")]
    return found


def units(model: Any) -> list[str]:
    """Return the modules of a size to decide about: blocks of the ViT, stages of the CNN, head."""
    found: dict[str, None] = {}
    for node in model.graph.node:
        names = scope(node).split(".")
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            depth = {"head": 1, "vit": 3 if "blocks" in names else 2, "cnn": 3}.get(names[0], 1)
            found[".".join(names[:depth])] = None
    return list(found)


def nodes_of(model: Any, module: str) -> set[str]:
    """Return the names of the nodes inside a module."""
    return {node.name for node in model.graph.node if in_module(node, module)}


def _names(model: Any) -> set[str]:
    return {node.name for node in model.graph.node}
