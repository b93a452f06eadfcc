"""Compare a model file's inputs and outputs with its spec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hybrid_rt.errors import ModelFileError
from hybrid_rt.spec import ModelSpec


def check_interface(
    path: Path,
    spec: ModelSpec,
    inputs: Mapping[str, tuple[str, Sequence[int | None]]],
    outputs: Iterable[str] | Mapping[str, Sequence[int | None]],
) -> tuple[str, ...]:
    """Compare a graph's inputs and outputs with the spec; return the names of its outputs.

    Args:
        inputs: The type ("uint8") and shape of each name; None is a dynamic size.
        outputs: Names, or names with shapes.

    Raises:
        ModelFileError: If they do not fit.
    """
    size = spec.preprocess
    expected_shape = (None, size.height, size.width, 3)
    kind, shape = inputs.get("images", ("none", ()))
    fits = len(shape) == 4 and all(
        found is None or found == wanted
        for found, wanted in zip(shape, expected_shape, strict=True)
    )
    if len(inputs) != 1 or kind != "uint8" or not fits:
        found = ", ".join(f"{n} {t} {_shape(s)}" for n, (t, s) in inputs.items()) or "none"
        raise ModelFileError(
            f"{path} has the inputs {found[:200]}; its specification has images uint8 "
            f"{_shape(expected_shape)}: make the file with hybrid-export"
        )
    names = tuple(outputs)
    expected = [o.name for o in spec.outputs] or ["probabilities", "logits", "features"]
    missing = [name for name in expected if name not in names]
    if missing:
        raise ModelFileError(
            f"{path} has the outputs {', '.join(names)[:200] or 'none'}; its specification also "
            f"lists {', '.join(missing)}: export the model again"
        )
    classes = len(spec.classes)
    widths = {"probabilities": classes, "logits": classes, "features": spec.num_features}
    for name, shape in outputs.items() if isinstance(outputs, Mapping) else ():
        width = widths.get(name)
        if width is not None and (len(shape) != 2 or shape[1] not in (None, width)):
            raise ModelFileError(
                f"{path} returns {name} {_shape(shape)}; its specification has "
                f"{_shape((None, width))}: export the model again"
            )
    return names


def _shape(shape: Sequence[int | None]) -> str:
    return "[" + ",".join("batch" if size is None else str(size) for size in shape) + "]"
