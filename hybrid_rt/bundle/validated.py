"""The backends and precisions that the parity reports of a bundle's file cover.

A combination is written as in ``hybrid_rt.cpu``: "openvino", "int8+bf16" is an INT8 file that
OpenVINO runs with the bf16 hint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hybrid_rt.bundle.manifest import BundleFile

Combination = tuple[str, str]


def combination(backend: str, file_precision: str, precision: str | None) -> Combination:
    """Return the combination of a backend, a file's precision and the precision it computes in."""
    if precision != "bf16" or file_precision == "bf16":
        return backend, file_precision
    return backend, "bf16" if file_precision == "fp32" else f"{file_precision}+bf16"


def precision_hint(found: Combination) -> str | None:
    """Return OpenVINO's hint, "bf16" or "fp32"; None for a backend that takes no hint."""
    backend, precision = found
    if backend != "openvino":
        return None
    return "bf16" if "bf16" in precision else "fp32"


def cpu_reports(entry: BundleFile | None) -> dict[Combination, Mapping[str, Any]]:
    """Return the parity reports that passed on a CPU, by combination."""
    if entry is None:
        return {}
    found: dict[Combination, Mapping[str, Any]] = {}
    for check in _checks(entry.parity_report):
        backend = check.get("backend")
        if check.get("passed") is True and check.get("device") == "cpu" and backend is not None:
            hint = check.get("precision_hint")
            found[combination(str(backend), entry.precision, hint)] = check
    return found


def _checks(parity_report: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if not isinstance(parity_report, Mapping):
        return
    yield parity_report
    others = parity_report.get("also")
    for other in others if isinstance(others, list) else ():
        if isinstance(other, Mapping):
            yield other
