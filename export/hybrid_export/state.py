"""One export under way: what its steps share, and how a finished file enters the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid_export.network.deployment import DeploymentGraph
from hybrid_export.options import ExportOptions
from hybrid_export.parity.compare import ParityReport, Reference, compare
from hybrid_export.parity.layer_diff import describe_layers
from hybrid_export.parity.tolerances import TOLERANCES, PrecisionName
from hybrid_export.runners import Runner, session
from hybrid_rt.bundle.manifest import Bundle, Golden, describe_file
from hybrid_rt.errors import BackendMissingError, DeviceError
from hybrid_rt.spec import ModelSpec
from hybrid_train.model.hybrid import HybridClassifier

Say = Callable[[str], None]

#: Images that a second library is checked on.
_ALSO_IMAGES = 8


@dataclass(kw_only=True)
class Job:
    """``graph`` and ``fp32`` (its ONNX model) are what every file is made of.

    ``failures`` are the files that were asked for and not made, each with its reason.
    """

    model: HybridClassifier
    spec: ModelSpec
    options: ExportOptions
    reference: Reference
    staged: Path
    bundle: Bundle
    graph: DeploymentGraph
    fp32: Any
    say: Say
    failures: list[str] = field(default_factory=list)

    def validate(self, runner: Runner, precision: PrecisionName, *also: Runner) -> ParityReport:
        """The parity report of a file, also on other libraries."""
        tolerances = TOLERANCES[precision]
        report = compare(runner, self.reference, self.spec, tolerances)
        if not report.failures:
            few = self.reference.first(_ALSO_IMAGES)
            report.also = [compare(other, few, self.spec, tolerances, brief=True) for other in also]
        return report

    def screen(self, runner: Runner, precision: PrecisionName) -> ParityReport:
        """A quick comparison on a few images: what fails here would fail the parity report."""
        few = self.reference.first(_ALSO_IMAGES)
        return compare(runner, few, self.spec, TOLERANCES[precision], brief=True)

    def openvino(self, path: Path, precision: str | None = None) -> list[Runner]:
        """A runner on OpenVINO, or none if it is not installed or this CPU cannot run that."""
        try:
            return [session(path, self.spec, "openvino", precision=precision)]
        except (BackendMissingError, DeviceError):
            return []

    def try_bf16(self, report: ParityReport, path: Path, precision: PrecisionName) -> None:
        """Add a check of the file run with the bf16 hint, on all images, if it passes.

        OpenVINO computes in bf16 what the file has in float32, and the runtime lets it if this
        check has passed. OpenVINO's own default on such a CPU is the same hint, unchecked.
        """
        for runner in self.openvino(path, "bf16"):
            other = compare(runner, self.reference, self.spec, TOLERANCES[precision], brief=True)
            self.say(f"{path.name}, bf16 hint: {other.summary()}")
            if other.passed:
                report.also.append(other)
            else:
                failed = "; ".join(other.failures)
                self.say(f"{path.name}: not validated with the bf16 hint: {failed}")

    def report(self, name: str, report: ParityReport) -> None:
        """Say how a file did."""
        verdict = "passed" if report.passed else "FAILED"
        self.say(f"{name}: parity {verdict}: {report.summary()}")

    def add(
        self,
        path: Path,
        precision: PrecisionName,
        report: ParityReport | None,
        **facts: Any,
    ) -> None:
        """List a staged file in the bundle."""
        data: Mapping[str, Any] | None = None if report is None else report.to_dict()
        entry = describe_file(path, precision=precision, parity_report=data, **facts)
        self.bundle = self.bundle.with_file(path.name, entry)

    def set_golden(self, golden: Golden) -> None:
        self.bundle = replace(self.bundle, golden=golden)

    def failure(self, name: str, report: ParityReport, precision: PrecisionName, model: Any) -> str:
        """The error text of a file that failed: what broke, on which images, in which layers."""
        worst = self.reference.images.names.index(report.worst_images[0].partition(": ")[0])
        pixels = self.reference.images.pixels[worst : worst + 1]
        return (
            f"{name} does not equal PyTorch: {'; '.join(report.all_failures())}. Images: "
            f"{'; '.join(report.worst_images[:3])}. Layers: "
            f"{describe_layers(self.graph, model, pixels, precision)}. The file was not written"
        )
