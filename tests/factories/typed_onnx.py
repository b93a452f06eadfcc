"""A small typed ONNX graph: casts, a convolution, a normalization, a product, FP32 pooling."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {np.float16: TensorProto.FLOAT16, np.float32: TensorProto.FLOAT}


def write_typed_onnx(
    path, dtype=np.float16, *, batch="batch", size=32, opset=17, unknown_operator=False
):
    """Write a graph from uint8 NHWC images to the outputs, with weights and layers in ``dtype``."""
    random = np.random.default_rng(0)
    kind = TYPES[dtype]
    arrays = {
        "kernel": (random.standard_normal((16, 3, 4, 4)) / 7).astype(dtype),
        "bias": np.zeros(16, dtype),
        "gain": np.ones(16, dtype),
        "shift": np.zeros(16, dtype),
        "weight": random.standard_normal((16, 2)).astype(dtype),
        "scale": np.array([1 / 255], np.float32),
    }
    make = helper.make_node
    nodes = [
        make("Cast", ["images"], ["float"], name="cast", to=TensorProto.FLOAT),
        make("Transpose", ["float"], ["nchw"], name="nchw", perm=[0, 3, 1, 2]),
        make("Mul", ["nchw", "scale"], ["unit"], name="normalize"),
        make("Cast", ["unit"], ["half"], name="narrow", to=kind),
        make("Conv", ["half", "kernel", "bias"], ["map"], name="conv", strides=[4, 4]),
        make("Relu", ["map"], ["active"], name="relu"),
        make("Cast", ["active"], ["wide"], name="widen", to=TensorProto.FLOAT),
        make("ReduceMean", ["wide"], ["features"], name="pool", axes=[2, 3], keepdims=0),
        make("Cast", ["features"], ["pooled"], name="narrow_again", to=kind),
        make("LayerNormalization", ["pooled", "gain", "shift"], ["normal"], name="norm"),
        make("MatMul", ["normal", "weight"], ["product"], name="head"),
        make("Cast", ["product"], ["logits"], name="widen_logits", to=TensorProto.FLOAT),
        make("Softmax", ["logits"], ["probabilities"], name="softmax", axis=-1),
    ]
    if opset >= 18:  # the axes became an input
        arrays["axes"] = np.array([2, 3], np.int64)
        nodes[7] = make("ReduceMean", ["wide", "axes"], ["features"], name="pool", keepdims=0)
    if unknown_operator:
        nodes[5] = make("Weird", ["map"], ["active"], name="weird_one", domain="nobody")
    outputs = {"probabilities": 2, "logits": 2, "features": 16}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "typed",
        [info("images", TensorProto.UINT8, [batch, size, size, 3])],
        [info(name, TensorProto.FLOAT, [batch, width]) for name, width in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("nobody", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path
