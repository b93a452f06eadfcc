"""The spec is read out of ONNX files without onnx, and garbage raises typed errors."""

import contextlib

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories.tiny_onnx import tiny_spec, write_tiny_onnx
from hybrid_rt.bundle.onnx_metadata import read_metadata, read_spec
from hybrid_rt.errors import HybridError, ModelFileError, SpecError
from hybrid_rt.spec import METADATA_KEY


def test_equals_the_onnx_package(tiny_onnx):
    model = onnx.load(tiny_onnx)
    assert read_metadata(tiny_onnx) == {p.key: p.value for p in model.metadata_props}
    assert read_spec(tiny_onnx) == tiny_spec()


def test_several_entries_and_functions(tiny_onnx, tmp_path):
    model = onnx.load(tiny_onnx)
    onnx.helper.set_model_props(model, {"a": "ä" * 5000, "empty": "", METADATA_KEY: "{}"})
    model.doc_string = "text"
    onnx.save(model, tmp_path / "m.onnx")
    metadata = read_metadata(tmp_path / "m.onnx")
    assert metadata == {"a": "ä" * 5000, "empty": "", METADATA_KEY: "{}"}
    with pytest.raises(SpecError, match="no schema_version"):
        read_spec(tmp_path / "m.onnx")


def test_files_that_are_not_onnx(tiny_onnx, tmp_path):
    path = tmp_path / "m.onnx"
    for data, message in (
        (b"", "the file is empty"),
        (b"hello, this is text", "not a complete ONNX file"),
        (b"\x08\x07", "no ir_version or no graph"),
        (b"\xff" * 20, "more than 64 bits"),
        (tiny_onnx.read_bytes()[:-1], "cut short"),
    ):
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match=message):
            read_metadata(path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_metadata(tmp_path / "none.onnx")


def test_an_entry_that_claims_to_be_huge(tmp_path):
    path = tmp_path / "m.onnx"
    length = bytes([0x80, 0x80, 0x80, 0x20])  # 64 MiB
    with path.open("wb") as file:
        file.write(b"\x72" + length)  # metadata_props
        file.truncate(5 + (64 << 20))
    with pytest.raises(ModelFileError, match="an entry of 67108864 bytes"):
        read_metadata(path)


@settings(max_examples=2000, deadline=None)
@given(data=st.data())
def test_mutated_files_raise_typed_errors_only(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "mutated.onnx"
    if not hasattr(test_mutated_files_raise_typed_errors_only, "whole"):
        write_tiny_onnx(path, tiny_spec())
        test_mutated_files_raise_typed_errors_only.whole = path.read_bytes()
    raw = bytearray(test_mutated_files_raise_typed_errors_only.whole)
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(HybridError):
        read_spec(path)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_typed_errors_only(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "random.onnx"
    path.write_bytes(raw)
    with contextlib.suppress(HybridError):
        read_spec(path)
