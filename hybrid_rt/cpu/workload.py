"""The work of one child process of the probe. It prints a JSON line for each combination.

A library can end the process by a signal. So a line is printed and flushed before each attempt, and
the last line names the combination that ended the process. Times come at the end: all that ran are
timed in turn, so that a drift of the machine's speed slows all of them alike.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = list[NDArray[np.float32]]

#: Seconds for the timed rounds of one library, and least and most rounds.
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 0.7, 2, 8

#: Cosine with the FP32 outputs below which an output is wrong. Rounding alone, measured: BF16
#: 0.99999, INT8 0.99995.
_LEAST_COSINE = {"fp32": 0.99999, "bf16": 0.999, "int8": 0.99, "int8+bf16": 0.99}


def main(arguments: list[str]) -> None:
    """Try and time the combinations named in ``arguments``, such as ``openvino bf16``."""
    combinations = [tuple(text.split(" ")) for text in arguments]
    calls: dict[str, Callable[[], Any]] = {}
    for library, precision in combinations:
        name = f"{library} {precision}"
        _say(trying=name)
        try:
            opened = _OPEN[library](precision)
            problem = _wrong(opened(), precision) if library != "torch" else None
        except Exception as err:
            problem = f"{type(err).__name__}: {' '.join(str(err).split())[:200]}"
            status = "failed"
        else:
            status = "wrong"
        if problem is None:
            calls[name] = opened
            _say(ran=name)
        else:
            _say(failed=name, status=status, detail=problem)
    _say(trying="timing")
    _say(milliseconds=_time_in_turn(calls))


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def _time_in_turn(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the shortest time of each call, in milliseconds."""
    best = dict.fromkeys(calls, float("inf"))
    end = time.perf_counter() + _SECONDS
    for done in range(_MOST_ROUNDS):
        if done >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name, call in calls.items():
            call()  # what ran before has filled the caches with other weights
            started = time.perf_counter()
            call()
            best[name] = min(best[name], (time.perf_counter() - started) * 1e3)
    return {name: round(milliseconds, 3) for name, milliseconds in best.items()}


def _wrong(outputs: Outputs, precision: str) -> str | None:
    """Compare outputs with NumPy's product and the FP32 outputs; return what is wrong."""
    names = ("product", "block", "stage0", "stage1")
    least = _LEAST_COSINE[precision]
    for name, got, expected in zip(names, outputs, _reference(outputs, precision), strict=True):
        cosine = _cosine(got, expected)
        if not cosine >= least:  # NaN too
            return f"cosine of {name} with its FP32 value is {cosine:.5f}; expected {least}"
    return None


_fp32_outputs: Outputs = []


def _reference(outputs: Outputs, precision: str) -> Outputs:
    """FP32 outputs: the first that were right; FP32 itself is compared with NumPy's product."""
    if not _fp32_outputs:
        if precision != "fp32":
            _fp32_outputs.extend(_OPEN[_any_library()]("fp32")())
        else:
            _fp32_outputs.extend([_graphs()[1], *outputs[1:]])
    return _fp32_outputs


def _any_library() -> str:
    return "onnxruntime" if "onnxruntime" in sys.modules else "openvino"


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b)) / size if np.isfinite(size) and size > 0 else float("nan")


_made: dict[bool, tuple[bytes, NDArray[np.float32]]] = {}


def _graphs(int8: bool = False) -> tuple[bytes, NDArray[np.float32]]:
    from hybrid_rt.cpu.probe_graph import probe_graph

    if int8 not in _made:
        _made[int8] = probe_graph(int8=int8)
    return _made[int8]


def _open_openvino(precision: str) -> Callable[[], Outputs]:
    import openvino

    from hybrid_rt.cpu.probe_graph import probe_inputs

    hint = "bf16" if "bf16" in precision else "f32"
    model = openvino.Core().read_model(_graphs("int8" in precision)[0], b"")
    config = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model, "CPU", config)
    runs_in = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if runs_in != hint:
        raise RuntimeError(f"this CPU computes in {runs_in}, not in {hint}")
    request, inputs = compiled.create_infer_request(), probe_inputs()
    for name, values in inputs.items():
        request.get_tensor(name).data[...] = values

    def call() -> Outputs:
        request.infer()
        return [request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    return lambda: [values.copy() for values in call()]


def _open_onnxruntime(precision: str) -> Callable[[], Outputs]:
    import onnxruntime

    from hybrid_rt.cpu.probe_graph import probe_inputs

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        _graphs(precision == "int8")[0], options, providers=["CPUExecutionProvider"]
    )
    inputs = probe_inputs()
    return lambda: session.run(None, inputs)


def _open_torch(precision: str) -> Callable[[], Any]:
    """Forward and backward of a transformer block and a convolution."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(384, 6, 1536, 0.0, batch_first=True, norm_first=True)
    conv = nn.Conv2d(64, 64, 3, padding=1)
    tokens, maps = torch.rand(2, 50, 384), torch.rand(2, 64, 28, 28)

    def call() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = block(tokens).float().square().mean() + conv(maps).float().square().mean()
        loss.backward()
        value = float(loss.detach())
        if not np.isfinite(value):
            raise ArithmeticError(f"the loss is {value}")
        return value

    return call


_OPEN: dict[str, Callable[[str], Callable[[], Any]]] = {
    "openvino": _open_openvino,
    "onnxruntime": _open_onnxruntime,
    "torch": _open_torch,
}
