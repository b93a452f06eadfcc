"""MLPerf LoadGen against the runtime, one scenario per process.

    python -m benchmarks.loadgen FOLDER ROW SCENARIO OUTPUT

It runs in a child process, since an exception inside a query ends the process. The parent reads the
verdict from mlperf_log_summary.txt. A warm-up in the same process calibrates the expectations;
without it LoadGen calls a run invalid.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
SAMPLES = 32
MIN_SECONDS = 4.0
#: A scenario takes 5,600 images or fewer; on a processor too slow for that it fails.
TIMEOUT_S = 3600


def run_child(folder: Path, row: str, scenario: str, output: Path) -> dict[str, str]:
    """Run one scenario in a process of its own; return the summary's fields by name.

    Raises:
        RuntimeError: The child failed, with the end of its standard error.
    """
    output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.loadgen", str(folder), row, scenario, str(output)]
    top = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=top)
    if done.returncode != 0:
        raise RuntimeError(f"LoadGen {scenario} ended with {done.returncode}: {done.stderr[-500:]}")
    return read_summary(output / "mlperf_log_summary.txt")


def read_summary(path: Path) -> dict[str, str]:
    """Return the ``name : value`` lines of LoadGen's summary."""
    fields = {}
    for line in path.read_text().splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def headline(scenario: str, fields: dict[str, str]) -> str:
    """Return the number that MLPerf reports for a scenario, and whether it is valid."""
    verdict = fields.get("Result is", "no result")
    for name, value in fields.items():
        key = name.lower()
        if scenario == "SingleStream" and key.startswith("90.00 percentile latency"):
            return f"p90 {float(value) / 1e6:.1f} ms, {verdict}"
        if scenario == "MultiStream" and key.startswith("99.00 percentile latency"):
            return f"p99 {float(value) / 1e6:.1f} ms per query of 8, {verdict}"
        if scenario in ("Server", "Offline") and "samples per second" in key:
            return f"{float(value):.1f} images per second, {verdict}"
    return verdict


class SystemUnderTest:
    """One row behind LoadGen's queries, in batches of up to eight waiting samples."""

    def __init__(self, loadgen: Any, run: Any, images: np.ndarray, batch: int) -> None:
        self._loadgen, self._run, self._images, self._batch = loadgen, run, images, batch
        self._waiting: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def issue(self, samples: Any) -> None:
        """Queue the samples of a query."""
        for sample in samples:
            self._waiting.put((sample.id, sample.index))

    def flush(self) -> None:
        """Do nothing: no sample is held back."""

    def _work(self) -> None:
        while True:
            taken = [self._waiting.get()]
            while len(taken) < self._batch:
                try:
                    taken.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            logits = self._run(self._images[[index for _, index in taken]])
            responses = [
                self._loadgen.QuerySampleResponse(identity, row.ctypes.data, row.nbytes)
                for (identity, _), row in zip(taken, logits, strict=True)
            ]
            self._loadgen.QuerySamplesComplete(responses)


def seconds_of(call: Any, repeats: int = 5) -> float:
    """Return the median seconds of a call, after one call to warm up."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def main(argv: list[str]) -> int:
    folder, row, scenario, output = argv
    import mlperf_loadgen as lg

    from benchmarks.rows import ROWS

    images = np.load(Path(folder) / "images.npy")[:SAMPLES]
    run = ROWS[row].load(Path(folder)).pixels
    batch = 1 if scenario == "SingleStream" else 8
    one, eight = seconds_of(lambda: run(images[:1])), seconds_of(lambda: run(images[:8]))

    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(MIN_SECONDS * 1e3)
    # A 99th percentile needs 662 queries by LoadGen's early-stopping rule, a 90th needs 64.
    settings.min_query_count = {"SingleStream": 70, "Offline": 1}.get(scenario, 700)
    # LoadGen plans its number of queries from these; too slow an expectation ends a run too early.
    settings.single_stream_expected_latency_ns = int(one * 1e9 / 2)
    settings.multi_stream_expected_latency_ns = int(eight * 1e9 / 2)
    settings.multi_stream_samples_per_query = 8
    settings.offline_expected_qps = 1.3 * 8 / eight
    # 40% of the rate of single images, and a latency of at most thirty images.
    settings.server_target_qps = 0.4 / one
    settings.server_target_latency_ns = int(30 * one * 1e9)
    settings.server_target_latency_percentile = 0.99

    logs = lg.LogSettings()
    logs.log_output.outdir = output
    logs.log_output.copy_summary_to_stdout = False
    system = SystemUnderTest(lg, run, images, batch)
    sut = lg.ConstructSUT(system.issue, system.flush)
    qsl = lg.ConstructQSL(len(images), len(images), lambda _: None, lambda _: None)
    lg.StartTestWithLogSettings(sut, qsl, settings, logs)
    lg.DestroyQSL(qsl)
    lg.DestroySUT(sut)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 5:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1:]))
