"""The runtime's own choice on this CPU against every validated combination, timed in turn."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.rows import COMBINATIONS, FOLDER, ROWS, why_not

#: The largest ratio allowed of the choice's time to another combination's.
MOST = 1.05
ROUNDS = {"full": 15, "tiny": 40}


@pytest.mark.parametrize("batch", [1, 8])
def test_choice(batch, arena, preset):
    """``HybridEngine(folder)`` without options is within 5% of the best at each batch size."""
    rows = [row for row in COMBINATIONS if why_not(ROWS[row], arena.folder) is None]
    arena.keep_only(())
    workers = {row: arena.worker(row) for row in (FOLDER, *rows)}
    times: dict[str, list[float]] = {row: [] for row in workers}
    for row, worker in workers.items():
        assert arena.parity(row)["passed"], row
        worker.ask("pixels", batch)
    for _ in range(ROUNDS[preset]):
        for row, worker in workers.items():
            times[row].append(worker.ask("pixels", batch))
    mine = np.asarray(times.pop(FOLDER))
    ratios = {row: float(np.median(mine / np.asarray(other))) for row, other in times.items()}
    arena.extra.setdefault("choice", {})[f"batch {batch}"] = {
        "chosen": workers[FOLDER].facts,
        "chosen_ms": float(np.median(mine) * 1e3),
        "over": ratios,
    }
    print(f"batch {batch}: chosen {workers[FOLDER].facts}, {np.median(mine) * 1e3:.1f} ms")
    for row, ratio in sorted(ratios.items(), key=lambda item: item[1]):
        print(f"  {row:36} {np.median(times[row]) * 1e3:8.1f} ms, choice takes {ratio:.3f} of it")
    arena.keep_only(())
    assert max(ratios.values()) <= MOST, ratios
