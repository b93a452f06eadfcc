"""The whole export: checkpoint -> graph -> files -> certificates -> bundle.

    bundle = export("runs/mine", ExportOptions(output=Path("model"), fp16=True))

Every file is compared with PyTorch before it gets its final name; a file that fails is not kept.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from hybrid_export.artifacts.onnx_int8 import write_int8
from hybrid_export.artifacts.tensorrt import build, plan_requests, why_no_plan
from hybrid_export.artifacts.triton import write_repository
from hybrid_export.bundle.sidecars import companions, take_novelty, write_card
from hybrid_export.bundle.staging import publish, staging
from hybrid_export.network.deployment import DeploymentGraph
from hybrid_export.onnx_graph.convert import save, to_onnx
from hybrid_export.onnx_graph.dtype_report import SMALLEST_SHARE, WEIGHT_TYPES, graph_receipt
from hybrid_export.onnx_graph.evaluator import Interpreter
from hybrid_export.options import ExportOptions
from hybrid_export.parity.compare import Reference
from hybrid_export.parity.dataset import (
    VerificationSet,
    builtin_images,
    check_calibration,
    chosen_images,
    golden_images,
)
from hybrid_export.parity.tolerances import PrecisionName
from hybrid_export.precision.fallback import attempts
from hybrid_export.precision.half import HalfName, to_half
from hybrid_export.runners import pytorch, session
from hybrid_export.state import Job, Say
from hybrid_rt.bundle.manifest import GOLDEN_NAME, BuiltFor, Bundle, Golden
from hybrid_rt.errors import CheckpointError, ParityError
from hybrid_rt.files import sha256_file
from hybrid_rt.spec import ModelSpec
from hybrid_train.checkpoint import load_checkpoint, newest_run
from hybrid_train.model import HybridClassifier

_RANGE_IMAGES = 8


def export(checkpoint: str | Path | None, options: ExportOptions, say: Say = print) -> Bundle:
    """Export a run folder, a checkpoint or the newest run; returns the bundle as written.

    ``say`` gets one line a step. Raises ParityError where a file fails its certificate and
    ExportError where one cannot be made; nothing of it is left under its final name, while the
    files that passed are written.
    """
    no_plan = None if options.plans == "none" else why_no_plan(options)
    source = Path(checkpoint) if checkpoint is not None else newest_run()
    if options.int8:
        check_calibration(source, options.calibrate)
    model, spec = load(source)
    say(f"Checkpoint {source}: {spec.vit.model} + {spec.cnn.model}, {', '.join(spec.classes)}")
    with staging(options.output) as staged:
        spec = take_novelty(source, spec, staged, say)
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
        _fp32(job)
        if options.fp16 and not _half(job, "fp16") and not options.bf16:
            say("FP16 does not pass, so BF16 is tried: the same size, FP32's range, 8 bits")
            _half(job, "bf16")
        if options.bf16:
            _half(job, "bf16")
        if options.int8:
            write_int8(job, source)
        _plans(job, no_plan)
        _golden(job)
        write_card(job.bundle, source, staged, options.output, say)
        bundle = publish(job.bundle, staged, options.output, companions(job.bundle, staged))
    repository = _triton(bundle, source, options)
    for name, entry in bundle.files.items():
        say(f"Wrote {options.output / name} ({entry.bytes / 1e6:.1f} MB)")
    if repository is not None:
        command = f"tritonserver --model-repository {shlex.quote(str(options.triton))}"
        say(f"Wrote {repository} for: {command}")
    say(f"Next: {_next_command(bundle, options.output, images.example)}")
    if job.failures:
        written = ", ".join(bundle.files)
        raise ParityError(f"{' '.join(job.failures)} (written and certified: {written})")
    return bundle


def load(source: Path) -> tuple[HybridClassifier, ModelSpec]:
    """The network and its spec.

    Raises CheckpointError where the two do not fit.
    """
    model, spec = load_checkpoint(source)
    classes = model.head[-1].out_features
    if classes != len(spec.classes):
        raise CheckpointError(
            f"{source} gives {classes} logits but its spec names {len(spec.classes)} classes "
            f"({', '.join(spec.classes)}); train again, or correct the checkpoint's spec"
        )
    return model.eval(), spec


def _images(source: Path, spec: ModelSpec, options: ExportOptions) -> VerificationSet:
    limit = options.verify_limit
    found = chosen_images(options.verify, source, "validation", spec, limit=limit)
    return found if found is not None else builtin_images(spec)


def _fp32(job: Job) -> None:
    """model.onnx: everything else is made from it, so a failure here ends the export."""
    path = save(job.fp32, job.staged / "model.onnx")
    runner = session(path, job.spec)
    certificate = job.certify(runner, "fp32", *job.openvino(path, "fp32"))
    job.report(path.name, certificate)
    if not certificate.passed:
        raise ParityError(job.failure(path.name, certificate, "fp32", job.fp32))
    job.try_bf16(certificate, path, "bf16")
    job.add(path, "fp32", certificate, receipt=graph_receipt(path))


def _half(job: Job, precision: HalfName) -> bool:
    """model.fp16.onnx or model.bf16.onnx, with as little in FP32 as passes; whether one did."""
    path = job.staged / f"model.{precision}.onnx"
    images = job.reference.images.pixels[:_RANGE_IMAGES]
    reason, failed = "", None
    for attempt in attempts(job.fp32, precision, images):
        typed = to_half(job.fp32, precision, attempt.nodes)
        save(typed, path)
        receipt = graph_receipt(path)
        share = receipt["weight_share"].get(WEIGHT_TYPES[precision], 0.0)
        if share < SMALLEST_SHARE:
            reason = reason or f"{path.name} would have {share:.0%} of its weights in {precision}"
            break
        runner = Interpreter(typed).runner(path.name)
        certificate = job.screen(runner, precision)
        if certificate.passed:
            also = job.openvino(path, "bf16") if precision == "bf16" else []
            certificate = job.certify(runner, precision, *also)
        certificate.kept_fp32 = list(attempt.kept)
        kept = f" (kept in FP32: {', '.join(attempt.kept)})" if attempt.kept else ""
        job.report(path.name + kept, certificate)
        if certificate.passed:
            job.add(path, precision, certificate, source="model.onnx", receipt=receipt)
            return True
        failed = (certificate, typed)
    path.unlink(missing_ok=True)
    if failed is not None:
        reason = job.failure(path.name, failed[0], precision, failed[1])
    job.failures.append(f"{reason}.")
    return False


def _plans(job: Job, no_plan: str | None) -> None:
    """model.plan and its like, from the smallest precision that was asked for and passed."""
    options = job.options
    made = [p for p in ("fp16", "bf16", "int8") if f"model.{p}.onnx" in job.bundle.files]
    asked: list[PrecisionName] = [p for p in ("fp16", "bf16", "int8") if getattr(options, p)]
    sources = [f"model.{p}.onnx" for p in asked if p in made]
    if options.plans == "none" or (asked and not sources):
        return
    if not asked and options.plans == "auto":
        return
    if no_plan is not None:
        job.say(f"No TensorRT plan: {no_plan}")
        return
    for request in plan_requests(options, sources or ["model.onnx"]):
        built = build(request, options, job.staged, None)
        source = job.bundle.files[request.source]
        certificate = None
        if not request.capabilities:
            runner = session(built.path, job.spec, _plan_backend(built.built_for), device="cuda:0")
            certificate = job.certify(runner, source.precision)
            job.report(built.path.name, certificate)
            if not certificate.passed:
                built.path.unlink()
                failed = "; ".join(certificate.all_failures())
                job.failures.append(f"{request.name} does not equal PyTorch: {failed}.")
                continue
        _check_share(job, request.name, built.receipt, source.precision)
        job.add(
            built.path,
            source.precision,
            certificate,
            built_for=BuiltFor(**built.built_for),
            source=request.source,
            receipt=built.receipt,
        )
        where = "" if certificate else "; not run, since it is for another machine's GPU"
        job.say(
            f"{request.name}: built by {built.built_for['library']} {built.built_for['version']} "
            f"for compute capability {built.built_for['compute_capability']}, weights "
            f"{built.receipt['weight_share']}{where}"
        )


def _plan_backend(built_for: dict[str, object]) -> str:
    return "tensorrt-rtx" if built_for["library"] == "tensorrt_rtx" else "tensorrt"


def _check_share(
    job: Job, name: str, receipt: dict[str, dict[str, float]], precision: PrecisionName
) -> None:
    """A plan that is not what was asked for is a failure, whatever it answers."""
    share = receipt["weight_share"].get(WEIGHT_TYPES[precision], 0.0)
    if precision in ("fp16", "bf16") and share < SMALLEST_SHARE:
        raise ParityError(
            f"{name} has {share:.0%} of its weight bytes in {precision}; expected at least "
            f"{SMALLEST_SHARE:.0%}: TensorRT built {receipt['weight_share']}; nothing was written"
        )


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
    runs_here = [name for name, entry in bundle.files.items() if entry.certified]
    plans = [name for name in runs_here if name.endswith(".plan")]
    model = shlex.quote(str(output / plans[0] if plans else output))
    return f"hybrid-predict {model} {shlex.quote(str(example)) if example else 'IMAGE'}"


def _golden(job: Job) -> None:
    path = job.staged / GOLDEN_NAME
    images = golden_images(job.reference.images, job.reference.outputs, job.spec.preprocess)
    images.save(path)
    job.set_golden(Golden(file=path.name, sha256=sha256_file(path), count=len(images.names)))
