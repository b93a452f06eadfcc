"""The complete export: checkpoint -> graph -> files -> parity reports -> bundle.

    bundle = export("runs/mine", ExportOptions(output=Path("model"), fp16=True))

Every file is compared with PyTorch before it gets its final name; a file that fails is not kept.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from hybrid_export.artifacts.onnx_half import write_half
from hybrid_export.artifacts.onnx_int8 import write_int8
from hybrid_export.artifacts.tensorrt import why_no_engine, write_engines
from hybrid_export.artifacts.triton import write_repository
from hybrid_export.artifacts.write_onnx import write_onnx
from hybrid_export.bundle.sidecars import sidecars, stage_detector, write_card
from hybrid_export.bundle.staging import publish, staging
from hybrid_export.network.deployment import DeploymentGraph
from hybrid_export.onnx_graph.convert import to_onnx
from hybrid_export.options import ExportOptions
from hybrid_export.parity.compare import Reference
from hybrid_export.parity.dataset import (
    builtin_images,
    check_calibration,
    chosen_images,
    golden_images,
)
from hybrid_export.precision.fallback import Attempt
from hybrid_export.sessions import PyTorchSession
from hybrid_export.state import ExportState, Log
from hybrid_rt.bundle.manifest import GOLDEN_NAME, Bundle, Golden
from hybrid_rt.errors import CheckpointError, ParityError
from hybrid_rt.files import sha256_file
from hybrid_rt.spec import ModelSpec
from hybrid_train.model.checkpoint import load_checkpoint, newest_run
from hybrid_train.model.hybrid import HybridClassifier


def export(checkpoint: str | Path | None, options: ExportOptions, log: Log = print) -> Bundle:
    """Export a run folder, a checkpoint or the newest run; return the bundle as written.

    ``log`` gets one line a step. Raises ParityError if a file fails its parity report, ExportError
    or BackendError if one cannot be made. Nothing of that file is left under its final name; the
    files that passed are written, unless it is ``model.onnx`` that failed.
    """
    no_engine = why_no_engine(options)
    source = Path(checkpoint) if checkpoint is not None else newest_run()
    if options.int8:
        check_calibration(source, options.calibrate)
    model, spec = load(source)
    log(f"Checkpoint {source}: {spec.vit.model} + {spec.cnn.model}, {', '.join(spec.classes)}")
    with staging(options.output) as staged:
        spec = stage_detector(source, spec, staged, log)
        images = chosen_images(
            options.verify, source, "validation", spec, limit=options.verify_limit
        ) or builtin_images(spec)
        graph = DeploymentGraph(model, spec, explain=options.explain)
        spec = spec.replace(outputs=graph.outputs(spec))
        reference = Reference.of(PyTorchSession(model, spec), images)
        log(f"Reference: {reference.detail} on {len(images)} images of {images.origin}")
        state = ExportState(
            spec=spec,
            options=options,
            reference=reference,
            staged=staged,
            bundle=Bundle(spec=spec),
            graph=graph,
            fp32=to_onnx(graph, spec, opset=options.opset),
            log=log,
        )
        _write_onnx_files(state, source)
        write_engines(state, no_engine)
        _write_golden(state)
        write_card(state.bundle, source, staged, options.output, log)
        bundle = publish(state.bundle, staged, options.output, sidecars(state.bundle, staged))
    for name, entry in bundle.files.items():
        log(f"Wrote {options.output / name} ({entry.bytes / 1e6:.1f} MB)")
    _write_triton(bundle, source, options, log)
    log(f"Next: {_next_command(bundle, options.output, images.example)}")
    if state.failures:
        written = ", ".join(bundle.files)
        raise ParityError(f"{' '.join(state.failures)} (written and validated: {written})")
    return bundle


def load(source: Path) -> tuple[HybridClassifier, ModelSpec]:
    """Return the network and its spec.

    Raises CheckpointError if the two do not fit.
    """
    model, spec = load_checkpoint(source)
    classes = model.head[-1].out_features
    if classes != len(spec.classes):
        raise CheckpointError(
            f"{source} returns {classes} logits but its spec names {len(spec.classes)} classes "
            f"({', '.join(spec.classes)}); train again, or correct the checkpoint's spec"
        )
    return model.eval(), spec


def _write_onnx_files(state: ExportState, source: Path) -> None:
    """Write model.onnx, which everything else is made from, and the reduced precisions."""
    failure = write_onnx(state, "fp32", [Attempt()], lambda _: state.fp32)
    if failure is not None:
        raise ParityError(failure)
    options, failures = state.options, []
    if options.fp16:
        failures.append(write_half(state, "fp16"))
        if failures[-1] and not options.bf16:
            state.log("FP16 does not pass, so BF16 is tried: the same size, FP32's range, 8 bits")
            failures.append(write_half(state, "bf16"))
    if options.bf16:
        failures.append(write_half(state, "bf16"))
    if options.int8:
        failures.append(write_int8(state, source))
    state.failures += [f"{failure}." for failure in failures if failure]


def _write_golden(state: ExportState) -> None:
    """Write a few images with PyTorch's outputs, for the self-test."""
    path = state.staged / GOLDEN_NAME
    reference = state.reference
    images = golden_images(reference.images, reference.outputs, state.spec.preprocess)
    images.save(path)
    golden = Golden(file=path.name, sha256=sha256_file(path), count=len(images.names))
    state.bundle = replace(state.bundle, golden=golden)


def _write_triton(bundle: Bundle, source: Path, options: ExportOptions, log: Log) -> None:
    """Write the Triton model, named like the run, if one was asked for."""
    if options.triton is None:
        return
    run = source if source.is_dir() else source.parent
    name = source.stem if source.suffix == ".pth" else run.resolve().name
    written = write_repository(
        bundle, options.output, options.triton, name=name, max_batch=options.max_batch
    )
    log(f"Wrote {written} for: tritonserver --model-repository {shlex.quote(str(options.triton))}")


def _next_command(bundle: Bundle, output: Path, example: Path | None) -> str:
    """Return the command to run next, ready to paste if an image file is known."""
    runs_here = [name for name, entry in bundle.files.items() if entry.validated]
    plans = [name for name in runs_here if name.endswith(".plan")]
    model = shlex.quote(str(output / plans[0] if plans else output))
    return f"hybrid-predict {model} {shlex.quote(str(example)) if example else 'IMAGE'}"
