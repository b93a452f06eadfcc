"""The time that the engine adds to the library's own call, measured in the same calls."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from benchmarks.arena import Result

ALONE = "the library alone"
FILES = [
    ("onnxruntime", "model.onnx", {}),
    ("openvino", "model.onnx", {"precision": "fp32"}),
    ("openvino", "model.int8.onnx", {}),
]


class Timed:
    """A library's object that records the duration of one of its methods."""

    def __init__(self, inner: Any, method: str) -> None:
        self._inner, self._method = inner, method
        self.times: list[float] = []

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name != self._method:
            return attribute

        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return attribute(*arguments)
            finally:
                self.times.append(time.perf_counter() - started)

        return timed


def watch(engine: Any) -> Timed:
    """Put a Timed around the library's call for one image, and return it."""
    session = engine._session
    if session.backend == "onnxruntime":
        session._session = Timed(session._session, "run")
        return session._session
    compiled = session._of_size(1)
    while not compiled._idle.empty():
        compiled._idle.get()
    request = Timed(compiled._model.create_infer_request(), "infer")
    compiled._idle.put(request)
    return request


@pytest.mark.parametrize(("backend", "file", "options"), FILES)
def test_overhead(backend, file, options, arena, folder, rounds, benchmark):
    """One image, pixels to a Prediction, against the library's share of the same call."""
    from hybrid_rt import HybridEngine

    path = folder / "bundle" / file
    if not path.exists():
        pytest.skip(f"{file} was not made on this machine")
    arena.keep_only(())
    pixels = np.load(folder / "images.npy")[:4]
    with HybridEngine(path, backend=backend, **options) as engine:
        engine.predict(pixels[0])
        started = time.perf_counter()
        expected = [engine.predict(x).logits for x in pixels]
        cost = (time.perf_counter() - started) / len(pixels)
        library = watch(engine)
        result = Result(
            "engine over the library alone",
            f"hybrid-rt {engine.info['precision']}, {backend}",
            images=1,
            facts={key: engine.info[key] for key in ("backend", "device", "detail", "precision")},
            parity={"passed": True, "logits_max_abs": 0.0},
        )

        def call() -> None:
            index = len(result.times) % len(pixels)
            started = time.perf_counter()
            prediction = engine.predict(pixels[index])
            result.times.append(time.perf_counter() - started)
            assert np.array_equal(prediction.logits, expected[index])

        benchmark.pedantic(call, rounds=5 * rounds(cost), iterations=1)
    assert len(library.times) == len(result.times), "every call went through the library once"
    result.others[ALONE] = library.times
    result.facts["added_ms"] = float(np.median(np.subtract(result.times, library.times)) * 1e3)
    result.facts["added_share"] = 1 / result.ratios[ALONE] - 1
    arena.results.append(result)
    benchmark.extra_info.update(result.to_dict())
