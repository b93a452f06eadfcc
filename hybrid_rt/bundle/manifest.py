"""Bundle: the files of one exported model, what each is, and their digests.

``model.json`` lists every file with its SHA-256, its precision, what it was built for and its
parity report. ``model.golden.npz`` holds a few images with PyTorch's outputs for
``HybridEngine.selftest``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hybrid_rt.bundle.golden import GoldenImages
from hybrid_rt.errors import DigestError, ModelFileError, SpecError
from hybrid_rt.files import atomic_path, sha256_bytes, sha256_file
from hybrid_rt.serialization import from_plain, to_plain
from hybrid_rt.spec import ModelSpec

__all__ = [
    "BUNDLE_NAME",
    "BUNDLE_VERSION",
    "GOLDEN_NAME",
    "BuiltFor",
    "Bundle",
    "BundleFile",
    "Golden",
    "describe_file",
]

BUNDLE_VERSION = 2
BUNDLE_NAME = "model.json"
GOLDEN_NAME = "model.golden.npz"

#: model.json is read at once; a bundle's is some tens of kilobytes.
_MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class BuiltFor:
    """The library and GPU of a TensorRT plan. ``compute_capability`` is such as "8.9"."""

    library: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    compute_capability: str
    max_batch: int
    hardware_compatible: bool = False
    version_compatible: bool = False


@dataclass(frozen=True, kw_only=True)
class BundleFile:
    """One model file: its digest, format, precision and parity report.

    ``source`` is the bundle's file it was built from; ``dtype_report`` the types it computes in;
    ``parity_report`` how far its outputs are from PyTorch fp32, and whether within the tolerances.
    """

    sha256: str
    bytes: int
    format: Literal["onnx", "plan"]
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    built_for: BuiltFor | None = None
    source: str | None = None
    dtype_report: Mapping[str, Any] | None = None
    parity_report: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_digest_text(self.sha256)
        if self.bytes < 1:
            raise ModelFileError(f"bytes is {self.bytes}; expected a positive size")
        if self.source is not None:
            _check_file_name(self.source)

    @property
    def validated(self) -> bool:
        """Whether a parity report is there and passed."""
        return self.parity_report is not None and self.parity_report.get("passed") is True


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The golden images' file, relative to the bundle's folder, and how many it holds."""

    file: str
    sha256: str
    count: int

    def __post_init__(self) -> None:
        _check_file_name(self.file)
        _check_digest_text(self.sha256)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The contents of ``model.json``. ``folder`` is where it was read from; it is not written."""

    spec: ModelSpec
    files: Mapping[str, BundleFile] = field(default_factory=dict)
    golden: Golden | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        for name in self.files:
            _check_file_name(name)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read a bundle from its folder or its ``model.json``.

        Raises ModelFileError or SpecError; the message names the file and the field.
        """
        path = Path(path)
        if path.is_dir():
            path = path / BUNDLE_NAME
        try:
            if path.stat().st_size > _MAX_JSON_BYTES:
                raise ModelFileError(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB")
            data = json.loads(path.read_bytes())
        except OSError as err:
            raise ModelFileError(
                f"{path} cannot be read ({err.strerror}); expected the {BUNDLE_NAME} that "
                "hybrid-export writes"
            ) from err
        except (ValueError, RecursionError) as err:
            raise ModelFileError(f"{path} is not JSON: {err}; export the model again") from err
        try:
            return cls.from_dict(data, folder=path.parent)
        except (ModelFileError, SpecError) as err:
            raise type(err)(f"{path}: {err}") from err

    @classmethod
    def from_dict(cls, data: Any, *, folder: Path | None = None) -> Bundle:
        """Return the bundle of to_dict's values. Raises ModelFileError or SpecError."""
        known = ("bundle_version", "spec", "files", "golden")
        if not isinstance(data, Mapping):
            raise ModelFileError(f"bundle is {type(data).__name__}; expected an object")
        if data.get("bundle_version") != BUNDLE_VERSION:
            raise ModelFileError(
                f"bundle_version is {data.get('bundle_version')!r}; this hybrid-rt reads version "
                f"{BUNDLE_VERSION}: export the model again or install the matching release"
            )
        unknown = sorted(str(key) for key in set(data) - set(known))
        if unknown:
            raise ModelFileError(f"{unknown[0]} is unknown; known fields are {', '.join(known)}")
        missing = [key for key in known if key not in data]
        if missing:
            raise ModelFileError(f"{missing[0]} is missing")
        if not isinstance(data["files"], Mapping):
            raise ModelFileError(f"files is {type(data['files']).__name__}; expected an object")
        spec = ModelSpec.from_dict(data["spec"])
        try:
            files = {
                str(name): from_plain(BundleFile, entry, f"files[{str(name)[:60]!r}]")
                for name, entry in data["files"].items()
            }
            golden = data["golden"]
            golden = None if golden is None else from_plain(Golden, golden, "golden")
        except SpecError as err:
            raise ModelFileError(str(err)) from err
        return cls(spec=spec, files=files, golden=golden, folder=folder)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "bundle_version": BUNDLE_VERSION,
            "spec": self.spec.to_dict(),
            "files": {name: to_plain(entry) for name, entry in self.files.items()},
            "golden": None if self.golden is None else to_plain(self.golden),
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``model.json`` into ``folder``, completely or not at all; return its path."""
        path = Path(folder) / BUNDLE_NAME
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        with atomic_path(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        return path

    def with_file(self, name: str, entry: BundleFile) -> Bundle:
        """Return a copy that lists one more file, or another entry for it."""
        return replace(self, files={**self.files, name: entry})

    def path(self, name: str) -> Path:
        """Return the path of a file of this bundle."""
        if self.folder is None:
            raise ModelFileError("this bundle was not read from a folder; save and load it first")
        return self.folder / name

    def check(self, name: str) -> Path:
        """Compare a listed file's size and SHA-256; return its path.

        Raises DigestError if they differ, ModelFileError if the file is not listed or missing.
        """
        if self.golden is not None and name == self.golden.file:
            expected, size = self.golden.sha256, None
        elif name in self.files:
            expected, size = self.files[name].sha256, self.files[name].bytes
        else:
            raise ModelFileError(
                f"{name} is not listed in {self.path(BUNDLE_NAME)}; it lists "
                f"{', '.join(self.files) or 'nothing'}"
            )
        path = self.path(name)
        try:
            found = path.stat().st_size
            digest = sha256_file(path) if size in (None, found) else None
        except OSError as err:
            raise ModelFileError(
                f"{path} is listed in {BUNDLE_NAME} but cannot be read ({err.strerror}); copy the "
                "bundle again or export it again"
            ) from err
        if digest != expected:
            got = f"{found} bytes" if digest is None else f"SHA-256 {digest[:12]}…"
            want = f"{size} bytes" if digest is None else f"{expected[:12]}…"
            raise DigestError(
                f"{path} has {got}; {BUNDLE_NAME} expects {want}: the file is damaged or from "
                "another export; copy the complete bundle again or export it again"
            )
        return path

    def load_golden(self) -> GoldenImages:
        """Return the golden images, digest checked. Raises ModelFileError if there are none."""
        if self.golden is None:
            raise ModelFileError(
                "the bundle has no golden images; export again with --verify DATA or from a run "
                "folder with a validation/ folder"
            )
        return GoldenImages.load(self.check(self.golden.file))


def read_model_file(path: Path, sha256: str | None) -> bytes:
    """Return a file's bytes after these very bytes were compared with a digest, if there is one.

    A file can be replaced between a check of it and its reading by a library. Raises DigestError.
    """
    data = path.read_bytes()
    if sha256 is not None and sha256_bytes(data) != sha256:
        raise DigestError(
            f"{path} was replaced while it was being opened, or after; open the model again"
        )
    return data


def describe_file(
    path: str | os.PathLike[str],
    *,
    precision: Literal["fp32", "fp16", "bf16", "int8"],
    built_for: BuiltFor | None = None,
    source: str | None = None,
    dtype_report: Mapping[str, Any] | None = None,
    parity_report: Mapping[str, Any] | None = None,
) -> BundleFile:
    """Return the bundle entry of a file on disk, which is read once for its digest."""
    path = Path(path)
    return BundleFile(
        sha256=sha256_file(path),
        bytes=path.stat().st_size,
        format="plan" if path.suffix == ".plan" else "onnx",
        precision=precision,
        built_for=built_for,
        source=source,
        dtype_report=dtype_report,
        parity_report=parity_report,
    )


def _check_file_name(name: str) -> None:
    if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise ModelFileError(
            f"file name {name[:60]!r} in the bundle; expected a plain name in the bundle's folder"
        )


def _check_digest_text(text: str) -> None:
    if len(text) != 64 or any(c not in "0123456789abcdef" for c in text):
        raise ModelFileError(f"sha256 is {text[:70]!r}; expected 64 lower-case hexadecimal digits")
