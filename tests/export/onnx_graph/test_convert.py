"""The ONNX file: dynamic batch, plain operators, the spec inside."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from hybrid_export.network.deployment import DeploymentGraph
from hybrid_export.onnx_graph import convert
from hybrid_export.onnx_graph.convert import to_onnx
from hybrid_export.onnx_graph.io import load, save
from hybrid_export.sessions import PyTorchSession, open_file, run_batches
from hybrid_rt.errors import ExportError, UsageError
from hybrid_rt.spec import METADATA_KEY, ModelSpec


def pixels(count: int, size: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_equals_pytorch_at_every_batch(tiny_model, tiny_onnx, batch):
    x = pixels(batch)
    expected, got = PyTorchSession(*tiny_model).run(x), open_file(tiny_onnx, tiny_model[1]).run(x)
    assert list(got) == ["probabilities", "logits", "features"]
    for name in got:
        assert got[name].shape == (batch, expected[name].shape[1])
        assert got[name].dtype == np.float32
        gap = float(np.abs(got[name] - expected[name]).max())
        assert gap <= 1e-4, f"{name}: {gap}"
    assert (got["logits"].argmax(1) == expected["logits"].argmax(1)).all()


def test_rows_do_not_depend_on_their_batch(tiny_model, tiny_onnx):
    session, x = open_file(tiny_onnx, tiny_model[1]), pixels(8)
    together, alone = session.run(x), run_batches(session, x, 1)
    gap = float(np.abs(together["logits"] - alone["logits"]).max())
    assert gap <= 1e-5, gap


def test_operators_are_plain(tiny_model, tiny_onnx):
    model = load(tiny_onnx)
    kinds = Counter(node.op_type for node in model.graph.node)
    _, spec = tiny_model
    blocks, head_norms = 6, len(spec.head.hidden)
    # two a block, the last of the ViT, the head's: each one node
    assert kinds["LayerNormalization"] == 2 * blocks + 1 + head_norms
    assert not {"Shape", "Gather", "Expand", "Range", "ReduceMean", "BatchNormalization"} & set(
        kinds
    )
    assert model.graph.node[0].op_type == "Cast", "uint8 must go straight into a Cast"
    assert {node.domain for node in model.graph.node} == {""}
    assert any(n.name == "/vit.blocks.3.attn.qkv/MatMul" for n in model.graph.node)


def test_describes_itself(tiny_model, tiny_onnx):
    model = load(tiny_onnx)
    assert model.opset_import[0].version == 17
    metadata = {p.key: p.value for p in model.metadata_props}
    assert ModelSpec.from_json(metadata[METADATA_KEY]) == tiny_model[1]
    image = model.graph.input[0]
    dims = image.type.tensor_type.shape.dim
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 48, 48, 3]
    shapes = {
        o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim]
        for o in model.graph.output
    }
    assert shapes["features"] == ["batch", tiny_model[1].num_features]


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_other_opsets(tiny_model, tmp_path, opset):
    model = to_onnx(DeploymentGraph(*tiny_model), tiny_model[1], opset=opset)
    assert model.opset_import[0].version == opset
    path = save(model, tmp_path / "model.onnx")
    x = pixels(3)
    gap = float(
        np.abs(
            open_file(path, tiny_model[1]).run(x)["logits"]
            - PyTorchSession(*tiny_model).run(x)["logits"]
        ).max()
    )
    assert gap <= 1e-4, gap


@pytest.mark.parametrize("opset", [0, 16, 24, -1])
def test_opset_out_of_range(tiny_model, opset):
    with pytest.raises(UsageError, match=rf"opset is {opset}; expected 17 to 23"):
        to_onnx(DeploymentGraph(*tiny_model), tiny_model[1], opset=opset)


def test_weights_beyond_two_gigabytes(tiny_model, monkeypatch):
    monkeypatch.setattr(convert, "_MAX_BYTES", 1 << 16)
    with pytest.raises(ExportError, match=r"one ONNX file holds 2 GiB at most: choose smaller"):
        to_onnx(DeploymentGraph(*tiny_model), tiny_model[1])


def test_an_invalid_graph_is_not_written(tiny_onnx, tmp_path):
    model = load(tiny_onnx)
    model.graph.node[5].input[0] = "nowhere"
    with pytest.raises(ExportError, match=r"broken\.onnx is not a valid ONNX model"):
        save(model, tmp_path / "broken.onnx")
    assert list(tmp_path.iterdir()) == []
