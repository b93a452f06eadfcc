"""Export hybrid classifiers to ONNX and TensorRT, with a parity report.

from hybrid_export import ExportOptions, export

bundle = export("runs/mine", ExportOptions(output=Path("model"), fp16=True))
"""

from typing import TYPE_CHECKING, Any

from hybrid_rt.cpu import prepare

if TYPE_CHECKING:
    from hybrid_export.options import ExportOptions
    from hybrid_export.pipeline import export

__all__ = ["ExportOptions", "export"]

prepare("torch")  # before any module here imports it


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: PyTorch takes seconds."""
    if name == "ExportOptions":
        from hybrid_export.options import ExportOptions

        return ExportOptions
    if name == "export":
        from hybrid_export.pipeline import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
