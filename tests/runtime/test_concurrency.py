"""Many threads, several processes, ten thousand calls."""

import concurrent.futures
import gc
import multiprocessing
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from hybrid_rt import BackendError, HybridEngine

BACKENDS = ["onnxruntime", "openvino"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_eight_threads_equal_one_bit_for_bit(tiny_onnx, backend, mode):
    images = np.random.default_rng(3).integers(0, 256, (200, 32, 32, 3), np.uint8)
    with HybridEngine(tiny_onnx, backend=backend, mode=mode) as engine:
        serial = [engine.predict(image).logits for image in images]
        start = threading.Barrier(8)

        def work(seed):
            start.wait()
            order = np.random.default_rng(seed).permutation(200)
            return [(i, engine.predict(images[i]).logits) for i in order]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            results = [pair for pairs in pool.map(work, range(8)) for pair in pairs]
    assert len(results) == 1600
    different = sum(not np.array_equal(logits, serial[i]) for i, logits in results)
    assert different == 0, f"{different} of 1600 differ"


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_from_threads(tiny_onnx, backend, pixels):
    with HybridEngine(tiny_onnx, backend=backend, batch_size=4, mode="throughput") as engine:
        expected = engine.predict(pixels).logits
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for results in pool.map(lambda _: engine.predict(list(pixels)), range(20)):
                np.testing.assert_array_equal(results.logits, expected)


def test_streams_side_by_side(tiny_onnx, images):
    with HybridEngine(tiny_onnx, batch_size=2) as engine:
        expected = [p.label for p in engine.predict(images)]
        streams = [engine.stream(images) for _ in range(4)]
        for results in zip(*streams, strict=True):
            assert len({a.label for a in results}) == 1
        assert [p.label for p in engine.stream(images)] == expected


def test_a_stream_left_early_ends_its_threads(tiny_onnx, pixels):
    with HybridEngine(tiny_onnx) as engine:
        before = threading.active_count()
        stream = engine.stream([*pixels] * 20, batch_size=2)
        next(stream)
        assert threading.active_count() > before
        stream.close()
        assert threading.active_count() == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_close_while_others_run(tiny_onnx, backend, pixels):
    engine = HybridEngine(tiny_onnx, backend=backend)
    engine.predict(pixels[0])
    running = threading.Semaphore(0)

    def work():
        try:
            for call in range(1_000_000):
                engine.predict(pixels[call % len(pixels)])
                running.release()
        except BackendError as err:
            return str(err)
        return "never closed"

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work) for _ in range(4)]
        for _ in range(40):
            running.acquire(timeout=30)
        engine.close()
        messages = {future.result(timeout=30) for future in futures}
    assert all("closed" in message for message in messages), messages


def _predict_in_child(engine, pixels):
    try:
        return engine.predict(pixels).logits.tolist()
    except BackendError as err:
        return str(err)


def test_fork_is_refused_with_advice(tiny_onnx, pixels):
    with HybridEngine(tiny_onnx, backend="onnxruntime") as engine:
        read, write = os.pipe()
        with warnings.catch_warnings():  # Python 3.12 and later warn, rightly, about threads
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:  # nothing but the engine and the pipe may be used here
            result = _predict_in_child(engine, pixels)
            os.write(write, str(result).encode()[:4000])
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as file:
            result = file.read()
        os.waitpid(child, 0)
        assert "opened before fork() in another process" in result
        assert engine.predict(pixels[0]).label in ("benign", "malignant")


def test_spawn_opens_the_file_again(tiny_onnx, pixels):
    with HybridEngine(tiny_onnx, backend="onnxruntime") as engine:
        expected = engine.predict(pixels).logits
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            result = pool.submit(_predict_in_child, engine, pixels).result(timeout=120)
    np.testing.assert_array_equal(np.array(result, np.float32), expected)


def _resident():
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_leak_over_ten_thousand_calls(tiny_onnx, backend, pixels):
    with HybridEngine(tiny_onnx, backend=backend) as engine:
        for i in range(2000):  # pools and caches fill
            engine.predict(pixels[i % 11])
        gc.collect()
        before = _resident()
        for i in range(10_000):
            engine.predict(pixels[i % 11])
        gc.collect()
        grown = (_resident() - before) / 1024
    print(f"{backend}: {grown:.0f} KiB more after 10,000 calls")
    assert grown < 2048


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_leak_over_engines(tiny_onnx, backend, pixels):
    def once():
        with HybridEngine(tiny_onnx, backend=backend, threads=1) as engine:
            engine.predict(pixels[0])

    for _ in range(20):
        once()
    gc.collect()
    before = _resident()
    for _ in range(50):
        once()
    gc.collect()
    grown = (_resident() - before) / 1024
    print(f"{backend}: {grown:.0f} KiB more after 50 engines")
    assert grown < 50 * 400
