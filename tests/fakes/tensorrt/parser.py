"""The ONNX parser, and a parse function that fills a network from a real ONNX file."""

import types
from pathlib import Path

from .api import Value

#: TensorRT's layer types by ONNX operator; any other operator is refused.
_KINDS = {
    "Cast": "CAST",
    "Conv": "CONVOLUTION",
    "DequantizeLinear": "DEQUANTIZE",
    "LayerNormalization": "NORMALIZATION",
    "MatMul": "MATRIX_MULTIPLY",
    "Mul": "ELEMENTWISE",
    "QuantizeLinear": "QUANTIZE",
    "ReduceMean": "REDUCE",
    "Relu": "ACTIVATION",
    "Softmax": "SOFTMAX",
    "Transpose": "SHUFFLE",
}
_DTYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 7: "INT64", 10: "HALF", 16: "BF16"}


class ParserError:
    def desc(self):
        return "no importer registered for op: Weird"

    def node(self):
        return 7

    def node_name(self):
        return "/vit/weird"

    def node_operator(self):
        return "Weird"


class OnnxParser:
    def __init__(self, network, logger):
        assert isinstance(logger, self._trt.ILogger)
        self._network, self._logger = network, logger
        self._failed = False

    num_errors = property(lambda self: int(self._failed))

    def parse_from_file(self, model):
        assert isinstance(model, str)
        self._logger.log(Value("INFO", 3), f"Opset version:    {_opset_of(model)}")
        self._failed = not self._trt.parse(self._trt, self._network, model)
        return not self._failed

    def get_error(self, index):
        return self._trt.ParserError()


def parse_onnx(trt, network, path):
    """Fill a fake network as TensorRT's parser does; weakly typed ones report FP32 throughout.

    Returns whether every operator is known.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    weak = not network._flags & 2 and hasattr(trt.BuilderFlag, "FP16")
    members = trt.DataType.__members__
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = {v.name: v.type.tensor_type for v in [*inferred.value_info, *inferred.output]}
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    tensors = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or -1 for d in kind.shape.dim]
        tensors[value.name] = network.add_input(value.name, members[_DTYPES[kind.elem_type]], shape)

    def weights_of(name):
        dtype = onnx.helper.np_dtype_to_tensor_dtype(arrays[name].dtype)
        return types.SimpleNamespace(dtype=members[_DTYPES[dtype]], size=arrays[name].size)

    def tensor(name):
        if name not in tensors:  # a constant
            weights = weights_of(name)
            out = trt.ITensor(f"{name}_output", weights.dtype, arrays[name].shape)
            network._add("CONSTANT", name, [], [out], weights=weights)
            tensors[name] = out
        return tensors[name]

    for node in model.graph.node:
        if node.op_type not in _KINDS:
            return False
        kind = _KINDS[node.op_type]
        dtype = members[_DTYPES[values[node.output[0]].elem_type]]
        reported = members["FLOAT"] if weak and dtype.name in ("HALF", "BF16") else dtype
        out = trt.ITensor(node.output[0], reported, [])
        facts, names = {}, list(node.input)
        if kind == "CONVOLUTION" and all(n in arrays for n in names[1:]):
            kernel, bias = [*map(weights_of, names[1:]), None][:2]
            facts = {"kernel": kernel, "bias": bias}
            names = names[:1]
        if kind == "CAST":
            facts = {"to_type": dtype}
        if kind == "REDUCE":
            names = names[:1]
        inputs = [tensor(name) for name in names]
        network._add(kind, node.name or kind, inputs, [out], **facts)
        tensors[node.output[0]] = out
    return True


def _opset_of(path):
    """The opset of an ONNX file; 0 if there is no file."""
    import onnx

    if not Path(path).exists():
        return 0
    return next(o.version for o in onnx.load(path).opset_import if not o.domain)
