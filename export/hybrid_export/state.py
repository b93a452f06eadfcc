"""What the steps of one export share, and how a finished file enters the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_export.network.deployment import DeploymentGraph
from hybrid_export.options import ExportOptions
from hybrid_export.parity.compare import ParityReport, Reference, compare
from hybrid_export.parity.layer_diff import describe_layers
from hybrid_export.parity.tolerances import TOLERANCES, PrecisionName
from hybrid_rt.backends.base import Session
from hybrid_rt.bundle.manifest import Bundle, describe_file
from hybrid_rt.spec import ModelSpec

Log = Callable[[str], None]

#: Images of a comparison that comes before or beside the complete one.
_FEW_IMAGES = 8


@dataclass(kw_only=True)
class ExportState:
    """The state of one export.

    ``graph`` and ``fp32`` (its ONNX model) are what every file is made of; ``bundle`` grows with
    every file. ``failures`` has the reason of each file that was asked for and not made. ``log``
    gets one line a step.
    """

    spec: ModelSpec
    options: ExportOptions
    reference: Reference
    staged: Path
    bundle: Bundle
    graph: DeploymentGraph
    fp32: Any
    log: Log
    failures: list[str] = field(default_factory=list)

    def compare_few(
        self, session: Session, precision: PrecisionName, hint: str | None = None
    ) -> ParityReport:
        """Compare on a few images; a file that fails here would fail the parity report."""
        few, tolerances = self.reference.first(_FEW_IMAGES), TOLERANCES[precision]
        return compare(session, few, self.spec, tolerances, brief=True, precision_hint=hint)

    def validate(
        self, session: Session, precision: PrecisionName, also: Mapping[str, Session] | None = None
    ) -> ParityReport:
        """Return the parity report of a file; if it passes, also that of other sessions.

        ``also`` has them by the precision hint that they were opened with.
        """
        report = compare(session, self.reference, self.spec, TOLERANCES[precision])
        if not report.failures:
            report.also = [self.compare_few(o, precision, h) for h, o in (also or {}).items()]
        return report

    def add(
        self, path: Path, precision: PrecisionName, report: ParityReport | None, **facts: Any
    ) -> None:
        """List a staged file in the bundle."""
        data = None if report is None else report.to_dict()
        entry = describe_file(path, precision=precision, parity_report=data, **facts)
        self.bundle = self.bundle.with_file(path.name, entry)

    def describe_failure(
        self, name: str, report: ParityReport, precision: PrecisionName, model: Any
    ) -> str:
        """Return an error text: what differs, on which images, in which layers."""
        worst = self.reference.images.names.index(report.worst_images[0].partition(": ")[0])
        pixels = self.reference.images.pixels[worst : worst + 1]
        return (
            f"{name} does not equal PyTorch: {'; '.join(report.all_failures())}. Images: "
            f"{'; '.join(report.worst_images[:3])}. Layers: "
            f"{describe_layers(self.graph, model, pixels, precision)}. The file was not written"
        )
