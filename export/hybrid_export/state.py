"""One export under way: what its steps share, and how a finished file enters the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid_export.network.deployment import DeploymentGraph
from hybrid_export.options import ExportOptions
from hybrid_export.parity.compare import Certificate, Reference, certify
from hybrid_export.parity.layer_diff import describe_layers
from hybrid_export.parity.tolerances import LIMITS, PrecisionName
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

    def certify(self, runner: Runner, precision: PrecisionName, *also: Runner) -> Certificate:
        """The certificate of a file, also on other libraries."""
        limits = LIMITS[precision]
        certificate = certify(runner, self.reference, self.spec, limits)
        if not certificate.failures:
            few = self.reference.first(_ALSO_IMAGES)
            certificate.also = [
                certify(other, few, self.spec, limits, brief=True) for other in also
            ]
        return certificate

    def screen(self, runner: Runner, precision: PrecisionName) -> Certificate:
        """A quick look at a few images: what fails here would fail the certificate."""
        few = self.reference.first(_ALSO_IMAGES)
        return certify(runner, few, self.spec, LIMITS[precision], brief=True)

    def openvino(self, path: Path, precision: str | None = None) -> list[Runner]:
        """A runner on OpenVINO, or none if it is not installed or this CPU cannot run that."""
        try:
            return [session(path, self.spec, "openvino", precision=precision)]
        except (BackendMissingError, DeviceError):
            return []

    def try_bf16(self, certificate: Certificate, path: Path, precision: PrecisionName) -> None:
        """Add a check of the file run with the bf16 hint, on all images, if it passes.

        OpenVINO computes in bf16 what the file has in float32, and the runtime lets it if this
        check has passed. OpenVINO's own default on such a CPU is the same hint, unchecked.
        """
        for runner in self.openvino(path, "bf16"):
            other = certify(runner, self.reference, self.spec, LIMITS[precision], brief=True)
            self.say(f"{path.name}, bf16 hint: {other.summary()}")
            if other.passed:
                certificate.also.append(other)
            else:
                failed = "; ".join(other.failures)
                self.say(f"{path.name}: not validated with the bf16 hint: {failed}")

    def report(self, name: str, certificate: Certificate) -> None:
        """Say how a file did."""
        verdict = "passed" if certificate.passed else "FAILED"
        self.say(f"{name}: parity {verdict}: {certificate.summary()}")

    def add(
        self,
        path: Path,
        precision: PrecisionName,
        certificate: Certificate | None,
        **facts: Any,
    ) -> None:
        """List a staged file in the bundle."""
        data: Mapping[str, Any] | None = None if certificate is None else certificate.to_dict()
        entry = describe_file(path, precision=precision, certificate=data, **facts)
        self.bundle = self.bundle.with_file(path.name, entry)

    def set_golden(self, golden: Golden) -> None:
        self.bundle = replace(self.bundle, golden=golden)

    def failure(
        self, name: str, certificate: Certificate, precision: PrecisionName, model: Any
    ) -> str:
        """The error text of a file that failed: what broke, on which images, in which layers."""
        worst = self.reference.images.names.index(certificate.worst_images[0].partition(": ")[0])
        pixels = self.reference.images.pixels[worst : worst + 1]
        return (
            f"{name} does not equal PyTorch: {'; '.join(certificate.all_failures())}. Images: "
            f"{'; '.join(certificate.worst_images[:3])}. Layers: "
            f"{describe_layers(self.graph, model, pixels, precision)}. The file was not written"
        )
