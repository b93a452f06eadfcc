"""MLPerf's four scenarios on our fastest validated file; a result that is not VALID fails."""

from __future__ import annotations

import pytest

from benchmarks.loadgen import SCENARIOS, headline, run_child
from benchmarks.rows import ROWS, why_not

ROW = "hybrid-rt int8"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario, arena, folder, tmp_path):
    pytest.importorskip("mlperf_loadgen", reason="pip install mlcommons-loadgen")
    reason = why_not(ROWS[ROW], folder)
    if reason:
        pytest.skip(reason)
    arena.keep_only(())
    fields = run_child(folder, ROW, scenario, tmp_path / scenario)
    arena.extra.setdefault("loadgen", {})[scenario] = f"{ROW}: {headline(scenario, fields)}"
    assert fields["Result is"] == "VALID", fields
