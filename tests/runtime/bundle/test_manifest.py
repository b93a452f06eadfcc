"""model.json and golden images: written whole, read strictly."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_rt.bundle.golden import GoldenImages, pixels_digest
from hybrid_rt.bundle.manifest import BuiltFor, Bundle, Golden, describe_file
from hybrid_rt.errors import DigestError, HybridError, ModelFileError, SpecError
from hybrid_rt.files import atomic_path, sha256_file
from hybrid_rt.spec import Branch, Head, ModelSpec, Preprocess

SPEC = ModelSpec(
    classes=("benign", "malignant"),
    preprocess=Preprocess(height=32, width=32),
    vit=Branch(model="vit_tiny_patch16_224", features=192),
    cnn=Branch(model="resnet10t", features=512),
    head=Head(),
)


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "model.plan").write_bytes(b"plan bytes")
    golden = GoldenImages(
        names=("a.png", "b.png"),
        encoded=(b"aaa", b"bb"),
        pixels_sha256=(pixels_digest(np.zeros((2, 2, 3), np.uint8)),) * 2,
        logits=np.array([[1, 2], [3, 4]], np.float32),
        probabilities=np.array([[0.3, 0.7], [0.2, 0.8]], np.float32),
        features=np.ones((2, 5), np.float32),
    )
    path = golden.save(tmp_path / "model.golden.npz")
    made = Bundle(
        spec=SPEC,
        files={
            "model.onnx": describe_file(
                tmp_path / "model.onnx", precision="fp32", parity_report={"passed": True}
            ),
            "model.plan": describe_file(
                tmp_path / "model.plan",
                precision="fp16",
                source="model.onnx",
                built_for=BuiltFor(
                    library="tensorrt", version="10.3.0", compute_capability="8.9", max_batch=8
                ),
            ),
        },
        golden=Golden(file=path.name, sha256=sha256_file(path), count=2),
    )
    made.save(tmp_path)
    return Bundle.load(tmp_path)


def test_round_trip(bundle, tmp_path):
    again = Bundle.load(tmp_path / "model.json")
    assert again == bundle
    assert again.spec == SPEC
    assert again.files["model.onnx"].validated
    assert not again.files["model.plan"].validated
    assert again.files["model.plan"].built_for.compute_capability == "8.9"
    assert again.check("model.plan") == tmp_path / "model.plan"
    golden = again.load_golden()
    assert golden.encoded == (b"aaa", b"bb")
    assert golden.names == ("a.png", "b.png")
    np.testing.assert_array_equal(golden.logits, [[1, 2], [3, 4]])


def test_no_temporary_files_are_left(bundle, tmp_path):
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["model.golden.npz", "model.json", "model.onnx", "model.plan"]


def test_atomic_path_keeps_the_old_file_on_error(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half") + None
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    assert path.read_bytes() == b"old"


def test_changed_byte(bundle, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"grapH")
    with pytest.raises(DigestError, match="copy the complete bundle again"):
        bundle.check("model.onnx")


def test_truncated(bundle, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"gra")
    with pytest.raises(DigestError, match=r"has 3 bytes.*expects 5 bytes"):
        bundle.check("model.onnx")


def test_missing_and_unlisted(bundle, tmp_path):
    (tmp_path / "model.plan").unlink()
    with pytest.raises(ModelFileError, match=r"model\.plan is listed"):
        bundle.check("model.plan")
    with pytest.raises(ModelFileError, match="not listed"):
        bundle.check("other.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle_version": 3}, "bundle_version is 3"),
        ({"surprise": 1}, "surprise is unknown"),
        ({"files": []}, "files is list"),
        ({"files": {"../evil.onnx": {}}}, "missing"),
        ({"golden": {"file": "../g.npz", "sha256": "0" * 64, "count": 1}}, "plain name"),
        ({"golden": {"file": "g.npz", "sha256": "no", "count": 1}}, "64 lower-case"),
    ],
)
def test_strict(bundle, tmp_path, change, message):
    data = bundle.to_dict() | change
    (tmp_path / "model.json").write_text(json.dumps(data))
    with pytest.raises(ModelFileError, match=message):
        Bundle.load(tmp_path)


def test_file_names_stay_in_the_folder(bundle, tmp_path):
    data = bundle.to_dict()
    data["files"]["../model.onnx"] = data["files"].pop("model.onnx")
    (tmp_path / "model.json").write_text(json.dumps(data))
    with pytest.raises(ModelFileError, match="plain name"):
        Bundle.load(tmp_path)


def test_spec_fault_names_file_and_field(bundle, tmp_path):
    data = bundle.to_dict()
    del data["spec"]["classes"]
    (tmp_path / "model.json").write_text(json.dumps(data))
    with pytest.raises(SpecError, match=r"model\.json: spec\.classes is missing"):
        Bundle.load(tmp_path)


def test_not_json(tmp_path):
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ModelFileError, match="not JSON"):
        Bundle.load(tmp_path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        Bundle.load(tmp_path / "none")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def _paths(value, path=()):
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, (*path, index))


def _replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(copy[path[0]], path[1:], new)
    return copy


VALID = json.loads(
    json.dumps(
        Bundle(
            spec=SPEC,
            golden=Golden(file="model.golden.npz", sha256="0" * 64, count=2),
        ).to_dict()
        | {
            "files": {
                "model.plan": {
                    "sha256": "a" * 64,
                    "bytes": 3,
                    "format": "plan",
                    "precision": "fp16",
                    "built_for": {
                        "library": "tensorrt",
                        "version": "10.3.0",
                        "compute_capability": "8.9",
                        "max_batch": 8,
                        "hardware_compatible": False,
                        "version_compatible": False,
                    },
                    "source": "model.onnx",
                    "dtype_report": None,
                    "parity_report": {"passed": True},
                }
            }
        }
    )
)


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(list(_paths(VALID))), json_values)
def test_mutated_json_raises_typed_errors_only(path, new):
    with contextlib.suppress(HybridError):
        Bundle.from_dict(_replaced(VALID, path, new))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_golden_file_raises_typed_errors_only(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "golden"
    folder.mkdir(exist_ok=True)
    path = folder / "g.npz"
    GoldenImages(
        names=("a",),
        encoded=(b"a",),
        pixels_sha256=("0",),
        logits=np.ones((1, 2), np.float32),
        probabilities=np.ones((1, 2), np.float32),
        features=np.ones((1, 2), np.float32),
    ).save(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(HybridError):
        GoldenImages.load(path)
