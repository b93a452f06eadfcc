"""A model repository for NVIDIA Triton, made from a finished bundle.

    DIR/NAME/config.pbtxt
    DIR/NAME/labels.txt
    DIR/NAME/1/model.plan        (or model.onnx, with what it was validated as)

Clients send the pixels that ``hybrid_rt.images`` makes (uint8 ``[batch, height, width, 3]``); the
graph does the rest, so the repository needs no Python backend and no preprocessing model.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from hybrid_export.network.deployment import INPUT_NAME
from hybrid_rt.bundle.manifest import Bundle, BundleFile
from hybrid_rt.errors import ExportError, UsageError
from hybrid_rt.spec import ModelSpec

#: A lone request waits no longer than this for others to share its batch with.
QUEUE_DELAY_MICROSECONDS = 1000

_BACKENDS = {".plan": "tensorrt", ".onnx": "onnxruntime"}


def write_repository(
    bundle: Bundle, folder: Path, root: Path, *, name: str, max_batch: int
) -> Path:
    """Write ``root/NAME`` for the bundle saved in ``folder``; returns that folder.

    NAME is ``name`` in the letters that Triton's addresses allow. What ``root`` holds of other
    models is left alone; an earlier version of this one is replaced as a whole. Raises UsageError
    if ``root`` cannot be written to.
    """
    chosen = choose_file(bundle)
    built = bundle.files[chosen].built_for
    name = model_name(name)
    if built is not None:
        max_batch = min(max_batch, built.max_batch)
    hidden = root / f".{name}-{os.getpid()}"
    try:
        (hidden / "1").mkdir(parents=True)
        suffix = Path(chosen).suffix
        _link_or_copy(folder / chosen, hidden / "1" / f"model{suffix}")
        text = config(bundle.spec, name=name, suffix=suffix, max_batch=max_batch)
        (hidden / "config.pbtxt").write_text(text, encoding="utf-8")
        (hidden / "labels.txt").write_text(_labels(bundle.spec.classes), encoding="utf-8")
        _replace_folder(hidden, root / name)
    except OSError as err:
        raise UsageError(
            f"cannot write to {root} ({err.strerror}); expected a folder that you may write to: "
            "choose another with --triton"
        ) from err
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return root / name


def choose_file(bundle: Bundle) -> str:
    """Return the file that Triton should serve: a TensorRT plan, else FP16, else fp32 ONNX.

    Plans of TensorRT for RTX are for desktop applications: Triton's backend reads TensorRT's own.
    """

    def is_for_triton(name: str, entry: BundleFile) -> bool:
        if not name.endswith(".plan"):
            return entry.validated
        return entry.validated and (
            entry.built_for is not None and entry.built_for.library == "tensorrt"
        )

    able = [name for name, entry in bundle.files.items() if is_for_triton(name, entry)]
    for wanted in ("model.plan", "model.fp16.onnx", "model.onnx"):
        if wanted in able:
            return wanted
    raise ExportError(
        "no file of this export can be served by Triton; expected model.plan or a validated "
        "model.onnx"
    )


def config(spec: ModelSpec, *, name: str, suffix: str, max_batch: int) -> str:
    """Return the text of ``config.pbtxt`` (inference.ModelConfig in protobuf's text format)."""
    pixels = [spec.preprocess.height, spec.preprocess.width, 3]
    outputs = ",\n".join(
        _tensor(
            output.name,
            "TYPE_FP32",
            [int(n) for n in output.shape[1:]],
            'label_filename: "labels.txt"' if output.name == "probabilities" else "",
        )
        for output in spec.outputs
    )
    batches = sorted({1, max_batch})
    warmups = ",\n".join(_warmup(batch, pixels) for batch in batches)
    return (
        f'name: "{name}"\n'
        f'backend: "{_BACKENDS[suffix]}"\n'
        f"max_batch_size: {max_batch}\n"
        f"input [\n{_tensor(INPUT_NAME, 'TYPE_UINT8', pixels)}\n]\n"
        f"output [\n{outputs}\n]\n"
        "dynamic_batching {\n"
        f"  max_queue_delay_microseconds: {QUEUE_DELAY_MICROSECONDS}\n"
        "}\n"
        f"model_warmup [\n{warmups}\n]\n"
    )


def model_name(name: str) -> str:
    """Return the name in the letters that Triton's addresses allow; "hybrid" if none is left."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "hybrid"


def _tensor(name: str, kind: str, dims: Sequence[int], extra: str = "") -> str:
    lines = [f'    name: "{name}"', f"    data_type: {kind}", f"    dims: {list(dims)}"]
    if extra:
        lines.append(f"    {extra}")
    return "\n".join(("  {", *lines, "  }"))


def _warmup(batch: int, pixels: Sequence[int]) -> str:
    return (
        f'  {{\n    name: "batch {batch}"\n    batch_size: {batch}\n    inputs {{\n'
        f'      key: "{INPUT_NAME}"\n'
        f"      value {{ data_type: TYPE_UINT8 dims: {list(pixels)} zero_data: true }}\n"
        "    }\n  }"
    )


def _labels(classes: Sequence[str]) -> str:
    return "".join(" ".join(name.split()) + "\n" for name in classes)


def _link_or_copy(source: Path, target: Path) -> None:
    """Link the file, or copy it if the file system cannot link; both are written only once."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _replace_folder(new: Path, target: Path) -> None:
    if target.exists():
        old = target.with_name(f"{new.name}-old")
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old)
    else:
        new.rename(target)
