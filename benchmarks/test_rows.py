"""Latency, throughput and file-to-label times: each row against its baselines, in pairs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.arena import Arena, baselines_of
from benchmarks.rows import (
    CACHED,
    CUDA,
    EAGER,
    HEATMAPS,
    HINTED,
    PLAIN,
    ROWS,
    RUNTIME,
    why_not,
)
from benchmarks.worker import RowError

LATENCY = [n for n in ROWS if "throughput" not in n and not n.endswith(CACHED)]
OURS = [n for n in ROWS if n.startswith("hybrid-rt") and not n.endswith((CACHED, HEATMAPS))]
OFFLINE = [EAGER, HINTED, *CUDA, *(n for n in OURS if "fp32" not in n)]
FILES = [EAGER, *CUDA, *(n for n in OURS if n in LATENCY)]
LOADS = [EAGER, RUNTIME, PLAIN, *(n for n in ROWS if n.endswith(CACHED))]
Rounds = Callable[[float], int]  # seconds of one round -> number of rounds
BATCHES = {"offline": (8, 4)}  # images per batch, batches per call


@pytest.mark.parametrize("row", LATENCY)
def test_batch_1(row, arena, rounds, benchmark):
    """One image, pixels to logits."""
    measure("batch 1", row, "pixels", (1,), 1, arena, rounds, benchmark)


@pytest.mark.parametrize("row", LATENCY)
def test_batch_8(row, arena, rounds, benchmark):
    """Eight images in one call, pixels to logits."""
    measure("batch 8", row, "pixels", (8,), 8, arena, rounds, benchmark)


@pytest.mark.parametrize("row", OFFLINE)
def test_offline(row, arena, rounds, benchmark):
    """Four batches of eight, side by side if the row supports it."""
    batch, count = BATCHES["offline"]
    images = batch * count
    measure("offline", row, "offline", (batch, count), images, arena, rounds, benchmark)


@pytest.mark.parametrize("row", FILES)
def test_file_to_label(row, arena, rounds, benchmark):
    """Eight JPEG files, decoding included."""
    measure("file to label", row, "files", (8,), 8, arena, rounds, benchmark)


@pytest.mark.parametrize("row", LOADS)
def test_load(row, arena, rounds, benchmark):
    """From opening the model to the first prediction, in a new process, its files read before."""
    reason = why_not(ROWS[row], arena.folder)
    if reason:
        pytest.skip(reason)
    result = arena.start("load to first prediction", row, 1, [])
    arena.keep_only(())
    cost = 2 * arena.load_time(row)  # fills the cache, if the row has one
    others = [PLAIN] if row != PLAIN and why_not(ROWS[PLAIN], arena.folder) is None else []
    result.others = {name: [] for name in others}

    def before() -> None:
        for name in others:
            result.others[name].append(arena.load_time(name))

    def timed() -> None:
        result.times.append(arena.load_time(row))

    benchmark.pedantic(timed, setup=before, rounds=rounds(cost), iterations=1)
    benchmark.extra_info.update(result.to_dict())


def measure(
    table: str,
    row: str,
    command: str,
    arguments: tuple[int, ...],
    images: int,
    arena: Arena,
    rounds: Rounds,
    benchmark,
) -> None:
    reason = why_not(ROWS[row], arena.folder)
    if reason:
        pytest.skip(reason)
    baselines = [b for b in baselines_of(table, row) if why_not(ROWS[b], arena.folder) is None]
    try:
        result = arena.start(table, row, images, baselines)
    except RowError as err:
        if ROWS[row].ours:
            raise
        pytest.skip(f"cannot run here: {err}")
    if not result.parity["passed"]:
        result.error = "parity failed"
        if ROWS[row].ours:
            pytest.fail(f"{row} does not match PyTorch: {result.parity}")
        pytest.skip(f"{row} does not match PyTorch: {result.parity}")
    worker = arena.worker(row)
    others = {name: arena.worker(name) for name in baselines}
    cost = sum(one.ask(command, *arguments) for one in (*others.values(), worker))  # warm-up
    result.others = {name: [] for name in others}

    def before() -> None:
        for name, other in others.items():
            result.others[name].append(other.ask(command, *arguments))

    def timed() -> None:
        result.times.append(worker.ask(command, *arguments))

    benchmark.pedantic(timed, setup=before, rounds=rounds(cost), iterations=1)
    result.memory_bytes = worker.ask("memory")
    benchmark.extra_info.update(result.to_dict())
