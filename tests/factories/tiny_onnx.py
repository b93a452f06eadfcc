"""A tiny ONNX file with the deployment graph's interface, made without PyTorch."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hybrid_rt.spec import METADATA_KEY, Branch, Head, ModelSpec, Output, Preprocess

CELLS = 4  # rows and columns of the pooled map
HEATMAPS = ("heatmap_vit", "heatmap_cnn")


def tiny_spec(*, size=32, classes=("benign", "malignant"), explain=False, **changes):
    """Return a spec that fits ``write_tiny_onnx``."""
    outputs = [
        Output(name="probabilities", shape=("batch", len(classes))),
        Output(name="logits", shape=("batch", len(classes))),
        Output(name="features", shape=("batch", 16)),
    ]
    if explain:
        outputs += [Output(name=n, shape=("batch", CELLS, CELLS)) for n in HEATMAPS]
    return ModelSpec(
        classes=classes,
        preprocess=Preprocess(height=size, width=size),
        vit=Branch(model="tiny_vit", features=8),
        cnn=Branch(model="tiny_cnn", features=8),
        head=Head(kind="simple", hidden=()),
        outputs=tuple(outputs),
    ).replace(**changes)


def write_tiny_onnx(path, spec, *, metadata=True, seed=0):
    """Write Cast, Transpose, Conv, Relu, pooling, MatMul, Softmax to ``path``."""
    random = np.random.default_rng(seed)
    size = spec.preprocess.height
    kernel = size // CELLS
    tensors = {
        "scale": np.array(1 / 255, np.float32),
        "kernel": random.standard_normal((16, 3, kernel, kernel)).astype(np.float32) / kernel,
        "weight": random.standard_normal((16, len(spec.classes))).astype(np.float32),
        "temperature": np.array(spec.temperature, np.float32),
        "axes": np.array([2, 3], np.int64),
        "channel": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["nchw", "scale"], ["unit"]),
        helper.make_node("Conv", ["unit", "kernel"], ["conv"], strides=[kernel, kernel]),
        helper.make_node("Relu", ["conv"], ["map"]),
        helper.make_node("ReduceMean", ["map", "axes"], ["features"], keepdims=0),
        helper.make_node("MatMul", ["features", "weight"], ["logits"]),
        helper.make_node("Div", ["logits", "temperature"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["probabilities"], axis=-1),
        helper.make_node("ReduceMean", ["map", "channel"], ["heatmap_vit"], keepdims=0),
        helper.make_node("ReduceMax", ["map", "channel"], ["heatmap_cnn"], keepdims=0),
    ]
    names = [o.name for o in spec.outputs]
    nodes = [n for n in nodes if not n.output[0].startswith("heatmap") or n.output[0] in names]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [
            helper.make_tensor_value_info(o.name, TensorProto.FLOAT, list(o.shape))
            for o in spec.outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if metadata:
        helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
