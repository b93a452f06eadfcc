"""Rebuild of a bundle's TensorRT engine for this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hybrid_rt.bundle.manifest import BuiltFor, Bundle, BundleFile, describe_file
from hybrid_rt.errors import ModelFileError


def rebuild_advice(bundle: Bundle | None, entry: BundleFile | None) -> str:
    """Return what to do about a plan that does not fit, in a few words."""
    source = entry.source if entry else None
    if bundle is not None and source is not None and bundle.path(source).is_file():
        return (
            f"HybridEngine(..., rebuild=True) builds it again from {source}, or open "
            f"{bundle.path(source)} instead"
        )
    return "build it again on this machine with hybrid-export --tensorrt"


def rebuild_engine(
    bundle: Bundle,
    name: str,
    *,
    device: str = "cuda:0",
    progress: Callable[[float, str], None] | None = None,
) -> Bundle:
    """Build a bundle's engine again, for this machine, from the ONNX file it came from.

    Replaces the plan and then ``model.json``, and returns the new bundle. The new entry has no
    parity report of its own. That of its source still holds for the graph, and
    ``HybridEngine.selftest`` compares the plan with PyTorch's outputs.

    Raises:
        ModelFileError: The source does not exist.
        DigestError: The source is damaged.
        HybridError: Any error of ``build_engine``.
    """
    from hybrid_rt.tensorrt.builder.build_engine import build_engine

    entry = bundle.files[name]
    if entry.source is None:
        raise ModelFileError(
            f"{bundle.path(name)} has no source in its bundle, so it cannot be built again; "
            "export again on this machine"
        )
    source = bundle.check(entry.source)
    old = entry.built_for
    built = build_engine(
        source,
        bundle.path(name),
        library=old.library if old else "auto",
        device=device,
        max_batch=old.max_batch if old else 8,
        version_compatible=bool(old and old.version_compatible),
        hardware_compatible=bool(old and old.hardware_compatible),
        progress=progress,
    )
    renewed = describe_file(
        built.path,
        precision=entry.precision,
        built_for=BuiltFor(**built.built_for),
        source=entry.source,
        dtype_report=built.dtype_report,
    )
    folder = Path(built.path).parent
    bundle = replace(bundle.with_file(name, renewed), folder=folder)
    bundle.save(folder)
    return bundle
