"""The complete export: checkpoint -> graph -> files -> parity reports -> bundle.

    bundle = export("runs/mine", ExportOptions(output=Path("model"), fp16=True))

Every file is compared with PyTorch before it gets its final name; a file that fails is not kept.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from hybrid_export.artifacts.onnx_fp32 import write_fp32
from hybrid_export.artifacts.onnx_half import write_half
from hybrid_export.artifacts.onnx_int8 import write_int8
from hybrid_export.artifacts.tensorrt import why_no_engine, write_plans
from hybrid_export.artifacts.triton import write_repository
from hybrid_export.bundle.sidecars import sidecars, stage_detector, write_card
from hybrid_export.bundle.staging import publish, staging
from hybrid_export.network.deployment import DeploymentGraph
from hybrid_export.onnx_graph.convert import to_onnx
from hybrid_export.options import ExportOptions
from hybrid_export.parity.compare import Reference
from hybrid_export.parity.dataset import (
    VerificationSet,
    builtin_images,
    check_calibration,
    chosen_images,
    golden_images,
)
from hybrid_export.runners import pytorch
from hybrid_export.state import Job, Say
from hybrid_rt.bundle.manifest import GOLDEN_NAME, Bundle, Golden
from hybrid_rt.errors import CheckpointError, ParityError
from hybrid_rt.files import sha256_file
from hybrid_rt.spec import ModelSpec
from hybrid_train.model.checkpoint import load_checkpoint, newest_run
from hybrid_train.model.hybrid import HybridClassifier


def export(checkpoint: str | Path | None, options: ExportOptions, say: Say = print) -> Bundle:
    """Export a run folder, a checkpoint or the newest run; returns the bundle as written.

    ``say`` gets one line a step. Raises ParityError if a file fails its parity report and
    ExportError where one cannot be made; nothing of it is left under its final name, while the
    files that passed are written.
    """
    no_engine = None if options.plans == "none" else why_no_engine(options)
    source = Path(checkpoint) if checkpoint is not None else newest_run()
    if options.int8:
        check_calibration(source, options.calibrate)
    model, spec = load(source)
    say(f"Checkpoint {source}: {spec.vit.model} + {spec.cnn.model}, {', '.join(spec.classes)}")
    with staging(options.output) as staged:
        spec = stage_detector(source, spec, staged, say)
        images = _images(source, spec, options)
        graph = DeploymentGraph(model, spec, explain=options.explain)
        spec = spec.replace(outputs=graph.outputs(spec))
        reference = Reference.of(pytorch(model, spec), images)
        say(f"Reference: {reference.detail} on {len(images)} images of {images.origin}")
        job = Job(
            model=model,
            spec=spec,
            options=options,
            reference=reference,
            staged=staged,
            bundle=Bundle(spec=spec),
            graph=graph,
            fp32=to_onnx(graph, spec, opset=options.opset),
            say=say,
        )
        write_fp32(job)
        if options.fp16 and not write_half(job, "fp16") and not options.bf16:
            say("FP16 does not pass, so BF16 is tried: the same size, FP32's range, 8 bits")
            write_half(job, "bf16")
        if options.bf16:
            write_half(job, "bf16")
        if options.int8:
            write_int8(job, source)
        write_plans(job, no_engine)
        _golden(job)
        write_card(job.bundle, source, staged, options.output, say)
        bundle = publish(job.bundle, staged, options.output, sidecars(job.bundle, staged))
    repository = _triton(bundle, source, options)
    for name, entry in bundle.files.items():
        say(f"Wrote {options.output / name} ({entry.bytes / 1e6:.1f} MB)")
    if repository is not None:
        command = f"tritonserver --model-repository {shlex.quote(str(options.triton))}"
        say(f"Wrote {repository} for: {command}")
    say(f"Next: {_next_command(bundle, options.output, images.example)}")
    if job.failures:
        written = ", ".join(bundle.files)
        raise ParityError(f"{' '.join(job.failures)} (written and validated: {written})")
    return bundle


def load(source: Path) -> tuple[HybridClassifier, ModelSpec]:
    """The network and its spec.

    Raises CheckpointError where the two do not fit.
    """
    model, spec = load_checkpoint(source)
    classes = model.head[-1].out_features
    if classes != len(spec.classes):
        raise CheckpointError(
            f"{source} returns {classes} logits but its spec names {len(spec.classes)} classes "
            f"({', '.join(spec.classes)}); train again, or correct the checkpoint's spec"
        )
    return model.eval(), spec


def _images(source: Path, spec: ModelSpec, options: ExportOptions) -> VerificationSet:
    limit = options.verify_limit
    found = chosen_images(options.verify, source, "validation", spec, limit=limit)
    return found if found is not None else builtin_images(spec)


def _triton(bundle: Bundle, source: Path, options: ExportOptions) -> Path | None:
    """The Triton model, named like the run, where one was asked for."""
    if options.triton is None:
        return None
    run = source if source.is_dir() else source.parent
    name = source.stem if source.suffix == ".pth" else run.resolve().name
    return write_repository(
        bundle, options.output, options.triton, name=name, max_batch=options.max_batch
    )


def _next_command(bundle: Bundle, output: Path, example: Path | None) -> str:
    """What a person types next, ready to paste where an image file is known."""
    runs_here = [name for name, entry in bundle.files.items() if entry.validated]
    plans = [name for name in runs_here if name.endswith(".plan")]
    model = shlex.quote(str(output / plans[0] if plans else output))
    return f"hybrid-predict {model} {shlex.quote(str(example)) if example else 'IMAGE'}"


def _golden(job: Job) -> None:
    path = job.staged / GOLDEN_NAME
    images = golden_images(job.reference.images, job.reference.outputs, job.spec.preprocess)
    images.save(path)
    job.set_golden(Golden(file=path.name, sha256=sha256_file(path), count=len(images.names)))
