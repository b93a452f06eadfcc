"""The whole export: checkpoint -> graph -> files -> certificates -> bundle.

    bundle = export("runs/mine", ExportOptions(output=Path("model"), fp16=True))

Every file is compared with PyTorch before it gets its final name; a file that fails is not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hybrid_export.graph import DeploymentGraph, graph_outputs
from hybrid_export.limits import LIMITS
from hybrid_export.onnx_file import save, to_onnx
from hybrid_export.options import ExportOptions
from hybrid_export.parity import Certificate, Reference, certify
from hybrid_export.runners import onnx_runtime, pytorch
from hybrid_export.staging import publish, staging
from hybrid_export.verification import (
    VerificationSet,
    builtin_images,
    golden_images,
    load_verification,
    run_validation,
)
from hybrid_rt.bundle import GOLDEN_NAME, Bundle, Golden, describe_file, sha256_file
from hybrid_rt.errors import CheckpointError, ParityError
from hybrid_rt.spec import ModelSpec
from hybrid_train.checkpoint import load_checkpoint, newest_run
from hybrid_train.model import HybridClassifier

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Job:
    """One export under way. ``failures`` are the files that were asked for and not made."""

    model: HybridClassifier
    spec: ModelSpec
    options: ExportOptions
    reference: Reference
    staged: Path
    bundle: Bundle
    say: Say
    failures: list[str] = field(default_factory=list)


def export(checkpoint: str | Path | None, options: ExportOptions, say: Say = print) -> Bundle:
    """Export a run folder, a checkpoint or the newest run; returns the bundle as written.

    ``say`` gets one line a step. Raises ParityError where a file fails its certificate and
    ExportError where one cannot be made; nothing of it is left under its final name, while the
    files that passed are written.
    """
    source = Path(checkpoint) if checkpoint is not None else newest_run()
    model, spec = load(source)
    say(f"Checkpoint {source}: {spec.vit.model} + {spec.cnn.model}, {', '.join(spec.classes)}")
    with staging(options.output) as staged:
        images = _images(source, spec, options)
        reference = Reference.of(pytorch(model, spec), images)
        say(f"Reference: {reference.detail} on {len(images)} images of {images.origin}")
        job = Job(
            model=model,
            spec=spec,
            options=options,
            reference=reference,
            staged=staged,
            bundle=Bundle(spec=spec),
            say=say,
        )
        _fp32(job)
        _golden(job)
        bundle = publish(job.bundle, staged, options.output)
    if job.failures:
        raise ParityError("; ".join(job.failures))
    return bundle


def load(source: Path) -> tuple[HybridClassifier, ModelSpec]:
    """The network and its spec, completed with the graph's outputs.

    Raises CheckpointError where the two do not fit.
    """
    model, spec = load_checkpoint(source)
    classes = model.head[-1].out_features
    if classes != len(spec.classes):
        raise CheckpointError(
            f"{source} gives {classes} logits but its spec names {len(spec.classes)} classes "
            f"({', '.join(spec.classes)}); train again, or correct the checkpoint's spec"
        )
    return model.eval(), spec.replace(outputs=graph_outputs(spec))


def _images(source: Path, spec: ModelSpec, options: ExportOptions) -> VerificationSet:
    if options.verify is not None:
        return load_verification(options.verify, spec, limit=options.verify_limit)
    run = source if source.is_dir() else source.parent
    found = run_validation(run, spec, limit=options.verify_limit)
    return found if found is not None else builtin_images(spec)


def _fp32(job: Job) -> None:
    """model.onnx: everything else is made from it, so a failure here ends the export."""
    path = job.staged / "model.onnx"
    graph = DeploymentGraph(job.model, job.spec)
    save(to_onnx(graph, job.spec, opset=job.options.opset), path)
    certificate = certify(onnx_runtime(path), job.reference, job.spec, LIMITS["fp32"])
    _report(job, path.name, certificate)
    if not certificate.passed:
        path.unlink()
        raise ParityError(explain_failure(path.name, certificate))
    _add(job, path, "fp32", certificate)


def _add(job: Job, path: Path, precision: str, certificate: Certificate) -> None:
    entry = describe_file(path, precision=precision, certificate=certificate.to_dict())  # type: ignore[arg-type]
    job.bundle = job.bundle.with_file(path.name, entry)


def _golden(job: Job) -> None:
    path = job.staged / GOLDEN_NAME
    images = golden_images(job.reference.images, job.reference.outputs)
    images.save(path)
    golden = Golden(file=path.name, sha256=sha256_file(path), count=len(images.names))
    job.bundle = Bundle(spec=job.bundle.spec, files=job.bundle.files, golden=golden)


def _report(job: Job, name: str, certificate: Certificate) -> None:
    verdict = "passed" if certificate.passed else "FAILED"
    job.say(f"{name}: parity {verdict}: {certificate.summary()}")


def explain_failure(name: str, certificate: Certificate) -> str:
    """The error text of a file that failed: what broke, and on which images."""
    return (
        f"{name} does not equal PyTorch: {'; '.join(certificate.failures)}; worst images: "
        f"{'; '.join(certificate.worst_images[:3])}; the file was not written"
    )
