"""20,000 damaged images: typed errors only, no crash, no hang, bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hybrid_rt.images import MAX_PIXELS

SCRIPT = Path(__file__).parents[2] / "tools" / "fuzz_images.py"
COUNT = 20_000  # about 12 s of one core
BYTES_PER_PIXEL = 22  # docs/images.md: what decoding takes, times the largest header accepted
HANG_S = 60  # for one small file; a header that claims MAX_PIXELS may take a second or two


def test_damaged_images_raise_typed_errors(tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(COUNT), "1", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    summary = json.loads(report.read_text())
    assert "count" in summary, f"ended near file {summary} with {done.returncode}: {done.stderr}"
    assert summary["wrong"] == [], summary
    assert done.returncode == 0
    assert summary["outcomes"]["ImageError"] > COUNT / 2  # the damage is real
    assert summary["outcomes"]["decoded"] > COUNT / 20  # and some of it gets through the decoders
    assert summary["slowest_s"] < HANG_S
    bound = MAX_PIXELS * BYTES_PER_PIXEL / 2**20
    grown = summary["peak_mib"] - summary["start_mib"]
    assert grown < bound, f"memory grew by {grown} MiB; the bound is {bound:.0f}"
