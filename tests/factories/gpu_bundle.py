"""Bundles with plans for this GPU, and the reason if GPU tests cannot run here."""

from factories.tiny_hybrid import write_images
from hybrid_export.artifacts.tensorrt import why_no_engine
from hybrid_export.options import ExportOptions
from hybrid_rt.cuda import cuda_device
from hybrid_rt.tensorrt.library import installed_libraries


def why_not():
    """Return why the GPU tests cannot run here, or None."""
    return why_no_engine(ExportOptions())


def plan_flags():
    """Return the exporter's flags for a plan of this machine."""
    if "tensorrt" in installed_libraries():
        return ["--tensorrt"]
    major, _, minor = cuda_device().compute_capability.partition(".")
    return ["--tensorrt-rtx", f"SM{major}{minor}"]


def export_hybrid(folder, model, spec, *flags, count=24):
    """Export a bundle with an FP16 plan by the command that users type; return its folder."""
    from hybrid_export.cli import main
    from hybrid_train.model.checkpoint import save_checkpoint

    save_checkpoint(folder / "best.safetensors", model, spec)
    images = write_images(folder / "images", count)
    arguments = [
        *(str(folder / "best.safetensors"), "--fp16", "--output", str(folder / "bundle")),
        *("--opset", "17", "--verify", str(images), *plan_flags(), *flags),
    ]
    assert main(arguments) == 0
    return folder / "bundle"
