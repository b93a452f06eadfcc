"""Options of an export; no PyTorch is imported to check them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hybrid_export.onnx_graph.opset import DEFAULT_OPSET, check_opset
from hybrid_export.parity.dataset import DEFAULT_LIMIT
from hybrid_rt.errors import UsageError

#: Images a call: a full-size batch of this size takes some 25 GB of activations on a GPU.
MAX_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of one export.

    ``plans`` is the library that builds engines; "auto" takes TensorRT if it and a GPU are there,
    and otherwise logs what is missing. Raises UsageError if options contradict each other or are
    out of range.
    """

    output: Path = field(default_factory=Path.cwd)
    fp16: bool = False
    bf16: bool = False
    int8: bool = False
    #: Images to calibrate INT8 on; None takes the training images that the run kept.
    calibrate: str | None = None
    explain: bool = False
    plans: Literal["auto", "tensorrt", "tensorrt_rtx", "none"] = "auto"
    #: Members of TensorRT's ComputeCapability, such as "SM89".
    compute_capabilities: tuple[str, ...] = ()
    max_batch: int = 8
    opt_batch: int | None = None
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    opset: int = DEFAULT_OPSET
    verify: str | None = None
    verify_limit: int = DEFAULT_LIMIT
    triton: Path | None = None

    def __post_init__(self) -> None:
        check_opset(self.opset)
        if not 1 <= self.max_batch <= MAX_BATCH:
            raise UsageError(f"--max-batch is {self.max_batch}; expected 1 to {MAX_BATCH}")
        if self.opt_batch is not None and not 1 <= self.opt_batch <= self.max_batch:
            raise UsageError(
                f"--opt-batch is {self.opt_batch}; expected 1 to --max-batch, {self.max_batch}"
            )
        if self.verify_limit < 2:
            raise UsageError(f"--verify-limit is {self.verify_limit}; expected 2 images or more")
        if self.calibrate is not None and not self.int8:
            raise UsageError("--calibrate is for --int8; add --int8 or leave --calibrate out")
