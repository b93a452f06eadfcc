"""Read the spec out of an ONNX file without the onnx package and without reading the weights.

An ONNX file is one protobuf message, ModelProto (onnx/onnx.proto). Only its top-level fields are
walked here. The graph is skipped by its length, so a file of any size takes a few small reads.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

from hybrid_rt.errors import ModelFileError, SpecError
from hybrid_rt.spec import METADATA_KEY, ModelSpec

# Field numbers of ModelProto and StringStringEntryProto, and protobuf's wire types.
_IR_VERSION, _GRAPH, _METADATA_PROPS = 1, 7, 14
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_MAX_ENTRY_BYTES = 16 << 20
_MAX_FIELDS = 10_000


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the ``metadata_props`` of an ONNX file.

    Raises ModelFileError if the file is missing, cut short or not ONNX.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read_model(file, path.stat().st_size)
    except OSError as err:
        raise ModelFileError(
            f"{path} cannot be read ({err.strerror}); expected an ONNX file"
        ) from err
    except _NotProtobufError as err:
        raise ModelFileError(
            f"{path} is not a complete ONNX file ({err}); copy it again or export it again"
        ) from err


def read_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """Return the ModelSpec that hybrid-export wrote into an ONNX file.

    Raises ModelFileError if there is none, SpecError if it is not valid.
    """
    metadata = read_metadata(path)
    if METADATA_KEY not in metadata:
        raise ModelFileError(
            f"{path} is ONNX but carries no model specification ({METADATA_KEY} in its metadata): "
            "its preprocessing and classes are unknown; make the file with hybrid-export"
        )
    return ModelSpec.from_json(metadata[METADATA_KEY])


def check_embedded_spec(path: Path, spec: ModelSpec) -> None:
    """Raise SpecError if an ONNX file carries another specification than its bundle's ``spec``."""
    embedded = read_metadata(path).get(METADATA_KEY)
    if embedded is not None and ModelSpec.from_json(embedded) != spec:
        raise SpecError(
            f"{path} carries another specification than the model.json beside it: one of the two "
            "was changed or is from another export; copy the complete bundle again or export it "
            "again"
        )


class _NotProtobufError(Exception):
    """Bytes that are not the message they should be."""


def _read_model(file: BinaryIO, size: int) -> dict[str, str]:
    metadata: dict[str, str] = {}
    seen: set[int] = set()
    for _ in range(_MAX_FIELDS):
        if file.tell() == size:
            break
        field, wire = _read_tag(file)
        seen.add(field)
        if wire == _BYTES:
            length = _read_varint(file)
            if length > size - file.tell():
                raise _NotProtobufError(f"field {field} of {length} bytes is cut short")
            if field == _METADATA_PROPS:
                key, value = _read_entry(_read_exactly(file, length))
                metadata[key] = value
            else:
                file.seek(length, os.SEEK_CUR)
        else:
            _skip(file, field, wire)
    else:
        raise _NotProtobufError(f"more than {_MAX_FIELDS} fields")
    if not {_IR_VERSION, _GRAPH} <= seen:
        raise _NotProtobufError("no ir_version or no graph" if size else "the file is empty")
    return metadata


def _read_entry(data: bytes) -> tuple[str, str]:
    file = io.BytesIO(data)
    texts = {_KEY: "", _VALUE: ""}
    while file.tell() < len(data):
        field, wire = _read_tag(file)
        if wire == _BYTES:
            content = _read_exactly(file, _read_varint(file))
            if field in texts:
                texts[field] = content.decode("utf-8", errors="replace")
        else:
            _skip(file, field, wire)
    return texts[_KEY], texts[_VALUE]


def _read_tag(file: BinaryIO) -> tuple[int, int]:
    tag = _read_varint(file)
    if tag >> 3 == 0:
        raise _NotProtobufError("field number 0")
    return tag >> 3, tag & 7


def _read_varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = _read_exactly(file, 1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise _NotProtobufError("a number of more than 64 bits")


def _read_exactly(file: BinaryIO, length: int) -> bytes:
    if length > _MAX_ENTRY_BYTES:
        raise _NotProtobufError(f"an entry of {length} bytes")
    data = file.read(length)
    if len(data) < length:
        raise _NotProtobufError("the file is cut short")
    return data


def _skip(file: BinaryIO, field: int, wire: int) -> None:
    if wire == _VARINT:
        _read_varint(file)
    elif wire in (_FIXED64, _FIXED32):
        _read_exactly(file, 8 if wire == _FIXED64 else 4)
    else:
        raise _NotProtobufError(f"field {field} has wire type {wire}")
