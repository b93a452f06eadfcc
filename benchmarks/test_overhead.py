"""What the engine adds to a call of the library it drives: same file, settings and pixels."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.arena import Result

#: An idle library's threads may spin for a while; the other side is timed after that.
PAUSE_S = 0.05
FILES = [
    ("onnxruntime", "model.onnx", {}),
    ("openvino", "model.onnx", {"precision": "fp32"}),
    ("openvino", "model.int8.onnx", {}),
]
Logits = Callable[[np.ndarray], np.ndarray]


def library_alone(backend: str, path: Path, precision: str) -> Logits:
    """The library as a careful user calls it, without the engine: ``[1,H,W,3]`` to logits."""
    if backend == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        at = [o.name for o in session.get_outputs()].index("logits")
        return lambda images: session.run(None, {"images": images})[at]
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    shape = model.input("images").get_partial_shape()
    shape[0] = 1
    model.reshape(shape)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: request.infer([images])["logits"].copy()


@pytest.mark.parametrize(("backend", "file", "options"), FILES)
def test_overhead(backend, file, options, arena, folder, rounds, benchmark):
    """One picture, pixels to a Prediction, beside pixels to logits by the library alone."""
    from hybrid_rt import HybridEngine

    path = folder / "bundle" / file
    if not path.exists():
        pytest.skip(f"{file} was not made on this machine")
    arena.keep_only(())
    pixels = np.load(folder / "images.npy")[:4]
    with HybridEngine(path, backend=backend, **options) as engine:
        alone = library_alone(backend, path, "bf16" if "bf16" in engine.info["detail"] else "f32")
        gap = max(float(np.abs(alone(x[None])[0] - engine.predict(x).logits).max()) for x in pixels)
        assert gap == 0, f"not the same computation: the logits differ by {gap}"
        result = Result(
            "engine over the library alone",
            f"hybrid-rt {engine.info['precision']}, {backend}",
            images=1,
            facts={key: engine.info[key] for key in ("backend", "device", "detail", "precision")},
            parity={"passed": True, "logits_max_abs": gap},
        )
        theirs = result.others.setdefault("the library alone", [])

        def timed(call: Callable[[], Any], times: list[float]) -> None:
            time.sleep(PAUSE_S)
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)

        def pair() -> None:
            x = pixels[len(theirs) % len(pixels)]
            sides = [
                (lambda: alone(x[None]), theirs),
                (lambda: engine.predict(x), result.times),
            ]
            for call, times in sides if len(theirs) % 2 else sides[::-1]:
                timed(call, times)

        started = time.perf_counter()
        engine.predict(pixels[0])
        cost = 2 * (time.perf_counter() - started + PAUSE_S)
        benchmark.pedantic(pair, rounds=5 * rounds(cost), iterations=1)
    added = np.asarray(result.times) - np.asarray(theirs)
    result.facts["added_ms"] = float(np.median(added) * 1e3)
    result.facts["added_share"] = 1 / result.ratios["the library alone"] - 1
    arena.results.append(result)
    benchmark.extra_info.update(result.to_dict())
