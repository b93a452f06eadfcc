"""The Triton model repository, against Triton's own definition of config.pbtxt."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import replace

import pytest
from google.protobuf import text_format

from hybrid_export import pipeline
from hybrid_export.artifacts.triton import choose_file, model_name, write_repository
from hybrid_export.cli import main
from hybrid_export.onnx_graph.io import load
from hybrid_rt.bundle.manifest import BuiltFor, Bundle, BundleFile
from hybrid_rt.errors import ExportError, UsageError


@pytest.fixture(scope="module")
def model_config():
    """``inference.ModelConfig``; the client itself needs packages that are not wanted here."""
    try:
        files = importlib.metadata.files("tritonclient") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs tritonclient: pip install --no-deps -r requirements/no-deps.txt")
    path = next(f.locate() for f in files if f.name == "model_config_pb2.py")
    found = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def repository(monkeypatch, tiny_onnx, checkpoint, image_folder, tmp_path):
    monkeypatch.setattr(pipeline, "to_onnx", lambda *_, **__: load(tiny_onnx))
    (tmp_path / "triton" / "another" / "1").mkdir(parents=True)
    arguments = [str(checkpoint), "--output", str(tmp_path / "out"), "--verify", str(image_folder)]
    options = ["--no-tensorrt", "--max-batch", "4", "--triton", str(tmp_path / "triton")]
    assert main([*arguments, *options]) == 0
    return tmp_path / "triton"


def test_the_configuration_is_what_triton_reads(repository, model_config, tiny_model, checkpoint):
    name = checkpoint.parent.name
    config = model_config.ModelConfig()
    text_format.Parse((repository / name / "config.pbtxt").read_text(), config)
    assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 4)
    (image,) = config.input
    assert image.name == "images"
    assert image.data_type == model_config.TYPE_UINT8
    assert list(image.dims) == [48, 48, 3], "the batch dimension is Triton's own"
    spec = tiny_model[1]
    found = {o.name: (o.data_type, list(o.dims)) for o in config.output}
    fp32 = model_config.TYPE_FP32
    assert found == {o.name: (fp32, list(o.shape[1:])) for o in spec.outputs}
    assert config.HasField("dynamic_batching")
    assert [w.batch_size for w in config.model_warmup] == [1, 4]
    (labels,) = {o.label_filename for o in config.output if o.name == "probabilities"}
    assert (repository / name / labels).read_text().splitlines() == list(spec.classes)


def test_only_its_own_model_is_replaced(repository, checkpoint, tmp_path):
    name = checkpoint.parent.name
    bundle = Bundle.load(tmp_path / "out")
    (repository / name / "1" / "left-over").write_text("from an earlier export")
    write_repository(bundle, tmp_path / "out", repository, name=name, max_batch=8)
    assert sorted(p.name for p in repository.iterdir()) == sorted(["another", name])
    assert [p.name for p in (repository / name / "1").iterdir()] == ["model.onnx"]
    assert "max_batch_size: 8" in (repository / name / "config.pbtxt").read_text()
    served = (repository / name / "1" / "model.onnx").read_bytes()
    assert served == (tmp_path / "out" / "model.onnx").read_bytes()


def entry(suffix: str, library: str | None = None, validated: bool = True) -> BundleFile:
    built = None
    if library is not None:
        built = BuiltFor(
            library=library,
            version="10.3.0",
            compute_capability="8.9",
            max_batch=2,
            hardware_compatible=False,
            version_compatible=False,
        )
    return BundleFile(
        sha256="0" * 64,
        bytes=1,
        format="plan" if suffix == "plan" else "onnx",
        precision="fp32",
        built_for=built,
        parity_report={"passed": validated},
    )


def test_a_plan_is_served_before_fp16_before_fp32(tiny_model):
    bundle = Bundle(spec=tiny_model[1]).with_file("model.onnx", entry("onnx"))
    assert choose_file(bundle) == "model.onnx"
    bundle = bundle.with_file("model.fp16.onnx", entry("onnx"))
    assert choose_file(bundle) == "model.fp16.onnx"
    rtx = bundle.with_file("model.plan", entry("plan", "tensorrt_rtx"))
    assert choose_file(rtx) == "model.fp16.onnx", "Triton does not read plans of TensorRT for RTX"
    assert choose_file(bundle.with_file("model.plan", entry("plan", "tensorrt"))) == "model.plan"
    failed = bundle.with_file("model.fp16.onnx", entry("onnx", validated=False))
    assert choose_file(failed) == "model.onnx"
    with pytest.raises(ExportError, match="no file of this export"):
        choose_file(replace(bundle, files={}))


def test_a_plan_bounds_the_batch(tiny_model, tmp_path, model_config):
    bundle = Bundle(spec=tiny_model[1]).with_file("model.plan", entry("plan", "tensorrt"))
    (tmp_path / "model.plan").write_bytes(b"plan")
    folder = write_repository(bundle, tmp_path, tmp_path / "triton", name="a b/ü", max_batch=8)
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("a-b", "tensorrt", 2)
    assert (folder / "1" / "model.plan").read_bytes() == b"plan"


def test_names():
    assert model_name("run 1") == "run-1"
    assert model_name("...") == "hybrid"


def test_a_repository_that_cannot_be_written(tiny_model, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    bundle = Bundle(spec=tiny_model[1]).with_file("model.onnx", entry("onnx"))
    with pytest.raises(UsageError, match="choose another with --triton"):
        write_repository(bundle, tmp_path, tmp_path / "file" / "triton", name="x", max_batch=1)
