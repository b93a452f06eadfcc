"""The types of a TensorRT network's tensors, and constraints that hold TensorRT 8.6 to them.

A *typed walk* follows the network from its inputs, constants and casts to the outputs. It applies
the rule of ONNX that a floating-point operation computes in the type of its inputs. TensorRT 10 and
newer apply it themselves (strong typing). TensorRT 8.6 chooses freely, so each layer gets a
constraint.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hybrid_rt.errors import BackendError
from hybrid_rt.tensorrt.library import TensorRTLibrary, dtype_name

#: Bytes of one element, by the ONNX and NumPy names of the types.
ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8": 1,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
_FLOAT_TYPES = ("float32", "float16", "bfloat16", "float8")


#: The engine inspector's names of types, in the order to look for them.
_INSPECTED = (
    (r"bf16|bfloat16", "bfloat16"),
    (r"fp16|half", "float16"),
    (r"int8", "int8"),
    (r"fp32|float", "float32"),
)

#: Layers whose kernel is a property; the others get theirs from constants.
_KERNEL_CLASSES = {"CONVOLUTION": "IConvolutionLayer", "DECONVOLUTION": "IDeconvolutionLayer"}

#: Layers without arithmetic, whose types follow from their own fields.
_UNCONSTRAINED = {"CONSTANT", "CAST", "IDENTITY", "SHAPE", "QUANTIZE", "DEQUANTIZE", "ASSERTION"}


def network_layers(network: Any) -> Iterator[Any]:
    """Yield the network's layers in order."""
    for index in range(network.num_layers):
        yield network.get_layer(index)


def tensor_types(library: TensorRTLibrary, network: Any) -> dict[str, str]:
    """Return the type of each tensor by name.

    A strongly typed network reports its types; a typed walk finds those of any other.
    """
    layers = list(network_layers(network))
    if library.strongly_typed:
        types = {tensor.name: dtype_name(tensor.dtype) for tensor in _inputs(network)}
        for layer in layers:
            types.update((t.name, dtype_name(t.dtype)) for t in _outputs(layer))
        return types
    return _walk(library, network, layers)


def constrain_types(library: TensorRTLibrary, network: Any, config: Any) -> int:
    """Hold a weakly typed network (TensorRT 8.6) to the types of its ONNX graph.

    Sets the builder's flags for the types that occur, OBEY_PRECISION_CONSTRAINTS, and each
    layer's precision and output types. Layers fed by DequantizeLinear stay unconstrained; TensorRT
    runs them in INT8. Returns the number of constrained layers, which is 0 on newer libraries.

    Raises:
        BackendError: The graph has a type that this TensorRT cannot run.
    """
    if library.strongly_typed:
        return 0
    trt = library.module
    layers = list(network_layers(network))
    types = _walk(library, network, layers)
    present = set(types.values())
    flags = {"float16": "FP16", "bfloat16": "BF16", "int8": "INT8", "float8": "FP8"}
    for name, flag in flags.items():
        if name not in present:
            continue
        if not hasattr(trt.BuilderFlag, flag):
            raise BackendError(
                f"{library.label} cannot run {name}; use the FP16 or FP32 file, or TensorRT 10"
            )
        config.set_flag(getattr(trt.BuilderFlag, flag))
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    dequantized = {
        t.name for layer in layers if layer.type.name == "DEQUANTIZE" for t in _outputs(layer)
    }
    settable = {"float32": trt.DataType.FLOAT, "float16": trt.DataType.HALF}
    constrained = 0
    for layer in layers:
        if layer.type.name in _UNCONSTRAINED:
            continue
        if any(t.name in dequantized for t in _layer_inputs(layer)):
            continue
        outputs = [
            (index, settable[types[tensor.name]])
            for index, tensor in enumerate(_outputs(layer))
            if types[tensor.name] in settable and not tensor.is_shape_tensor
        ]
        if not outputs:
            continue
        layer.precision = outputs[0][1]
        for index, dtype in outputs:
            layer.set_output_type(index, dtype)
        constrained += 1
    return constrained


def network_dtype_report(library: TensorRTLibrary, network: Any) -> dict[str, Any]:
    """Return the bytes of weights, and the number of matrix and convolution layers, by type.

    ``{"measured_on": "tensorrt network", "weight_bytes": {"float16": n, …}, "weight_share":
    {"float16": 0.99, …}, "layers": {"convolution": {"float16": 53}, "matmul": {…}}}``. Weights are
    the floating-point and int8 constants and kernels; shapes and indices do not count.
    """
    types = tensor_types(library, network)
    weights: Counter[str] = Counter()
    layers: dict[str, Counter[str]] = {"convolution": Counter(), "matmul": Counter()}
    quantized = _quantized_tensors(network)
    for layer in network_layers(network):
        kind = layer.type.name
        if kind == "CONSTANT":
            tensor = layer.get_output(0)
            dtype = types[tensor.name]
            if dtype in _FLOAT_TYPES or dtype == "int8":
                weights[dtype] += _volume(tensor.shape) * ITEM_BYTES[dtype]
        elif kind in _KERNEL_CLASSES:
            for dtype, count in _kernel_weights(library, layer, kind):
                weights[dtype] += count * ITEM_BYTES.get(dtype, 4)
        if kind in _KERNEL_CLASSES or kind == "MATRIX_MULTIPLY":
            name = layer.get_input(0).name
            dtype = "int8" if name in quantized else types[name]
            layers["matmul" if kind == "MATRIX_MULTIPLY" else "convolution"][dtype] += 1
    return {"measured_on": "tensorrt network", **summarize_types(weights, layers)}


def engine_layers(information: str) -> dict[str, Any] | None:
    """Return the types in a built engine, from its inspector's JSON text; None without layers.

    ``{"layers": {"float16": 61, "float32": 4}, "weights": {"float16": 25503912}}``: layers by the
    type of their first output, and the elements of the weights that the inspector lists (none for
    the fused layers of a transformer).
    """
    try:
        listed = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    layers: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for layer in listed:
        if not isinstance(layer, dict):  # the engine keeps names only
            continue
        outputs = layer.get("Outputs") or [{}]
        layers[_inspected_type(outputs[0].get("Format/Datatype", ""))] += 1
        for key in ("Weights", "Bias"):
            facts = layer.get(key)
            if isinstance(facts, dict) and facts.get("Count"):
                weights[_inspected_type(str(facts.get("Type", "")))] += int(facts["Count"])
    if not layers:
        return None
    return {"layers": dict(sorted(layers.items())), "weights": dict(sorted(weights.items()))}


def _inspected_type(text: str) -> str:
    """Return the type in an inspector's text, such as "Channel major FP16 format" or "Half"."""
    for pattern, name in _INSPECTED:
        if re.search(pattern, text, re.IGNORECASE):
            return name
    return "other"


def summarize_types(weight_bytes: Counter[str], layers: dict[str, Counter[str]]) -> dict[str, Any]:
    """Return the common fields of dtype reports; shares are of all weight bytes, to 1e-6."""
    total = sum(weight_bytes.values())
    return {
        "weight_bytes": dict(sorted(weight_bytes.items())),
        "weight_share": {k: round(v / total, 6) for k, v in sorted(weight_bytes.items())},
        "layers": {kind: dict(sorted(counts.items())) for kind, counts in layers.items()},
    }


def _walk(library: TensorRTLibrary, network: Any, layers: list[Any]) -> dict[str, str]:
    types = {tensor.name: dtype_name(tensor.dtype) for tensor in _inputs(network)}
    waiting = layers
    while waiting:
        later = []
        for layer in waiting:
            inputs = [t.name for t in _layer_inputs(layer)]
            if any(name not in types for name in inputs):
                later.append(layer)
                continue
            computed = _computed_type(library, layer, [types[name] for name in inputs])
            for tensor in _outputs(layer):
                reported = dtype_name(tensor.dtype)
                types[tensor.name] = computed if reported in _FLOAT_TYPES else reported
        if len(later) == len(waiting):  # a loop: none of our graphs has one
            for layer in later:
                types.update((t.name, dtype_name(t.dtype)) for t in _outputs(layer))
            break
        waiting = later
    return types


def _computed_type(library: TensorRTLibrary, layer: Any, inputs: list[str]) -> str:
    """Return the floating-point type of a layer's result in the ONNX graph."""
    trt, kind = library.module, layer.type.name
    if kind == "CONSTANT":
        layer.__class__ = trt.IConstantLayer
        return dtype_name(layer.weights.dtype)
    if kind == "CAST":
        layer.__class__ = trt.ICastLayer
        return dtype_name(layer.to_type)
    if kind == "IDENTITY" and layer.output_type_is_set(0):
        return dtype_name(layer.get_output_type(0))
    if kind == "DEQUANTIZE" and len(inputs) > 1:
        return inputs[1]  # the scale's type
    return next((dtype for dtype in inputs if dtype in _FLOAT_TYPES), "float32")


def _quantized_tensors(network: Any) -> set[str]:
    return {
        tensor.name
        for layer in network_layers(network)
        if layer.type.name == "DEQUANTIZE"
        for tensor in _outputs(layer)
    }


def _kernel_weights(library: TensorRTLibrary, layer: Any, kind: str) -> Iterator[tuple[str, int]]:
    """Yield the type and element count of a layer's kernel and bias, unless they are inputs."""
    layer.__class__ = getattr(library.module, _KERNEL_CLASSES[kind])
    for weights in (layer.kernel, layer.bias):
        if weights is not None and weights.size:
            yield dtype_name(weights.dtype), int(weights.size)


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def _outputs(layer: Any) -> list[Any]:
    found = (layer.get_output(index) for index in range(layer.num_outputs))
    return [tensor for tensor in found if tensor is not None]


def _layer_inputs(layer: Any) -> list[Any]:
    found = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in found if tensor is not None]


def _volume(shape: Any) -> int:
    volume = 1
    for size in tuple(shape):
        volume *= int(size)
    return volume
