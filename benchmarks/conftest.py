"""`pytest benchmarks`: the options, the prepared model, and the table at the end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.arena import Arena
from benchmarks.page import write_page
from benchmarks.prepare import PRESETS, prepared
from benchmarks.rows import machine_facts
from benchmarks.tables import format_tables
from hybrid_rt.cpu import prepare

for library in ("torch", "openvino"):
    prepare(library)  # workers inherit it; without it some CPUs end their processes

#: The seconds that a row is timed for, and the least and most rounds.
SECONDS, LEAST, MOST = {"full": 30.0, "tiny": 3.0}, 3, 20


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hybrid-rt benchmarks")
    group.addoption(
        "--preset",
        choices=PRESETS,
        default="full",
        help="full: ViT-B/16 + ResNet50 at 224 px (default); tiny: small backbones, quick",
    )
    group.addoption(
        "--rounds",
        type=int,
        help="timed rounds per row (default: as many as fit into 30 s, tiny 3 s; 3 to 20)",
    )
    group.addoption(
        "--prepared",
        type=Path,
        metavar="DIR",
        help="measure the model prepared in DIR earlier, even if the sources changed since",
    )
    group.addoption(
        "--results",
        type=Path,
        default=Path("benchmarks/results"),
        help="folder for results.json and report.html (default: benchmarks/results)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("benchmark"):
        config.option.benchmark_columns = ["median", "iqr", "rounds"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the rows first and LoadGen's scenarios last; allow an hour for each test."""
    order = [
        "test_roofline",
        "test_choice",
        "test_rows",
        "test_overhead",
        "test_training",
        "test_loadgen",
    ]
    items.sort(key=lambda item: order.index(item.path.stem) if item.path.stem in order else -1)
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(autouse=True)
def _keep_json(pytestconfig: pytest.Config):
    """Write pytest-benchmark's own JSON beside ours, as if --benchmark-json were passed.

    It is set after the first measurement: with nothing to write, the plugin raises at the end.
    """
    yield
    session = getattr(pytestconfig, "_benchmarksession", None)
    if session is not None and session.benchmarks and not session.json:
        results = pytestconfig.getoption("--results")
        results.mkdir(parents=True, exist_ok=True)
        session.json = str(results / "pytest-benchmark.json")


@pytest.fixture(scope="session")
def preset(pytestconfig: pytest.Config) -> str:
    return str(pytestconfig.getoption("--preset"))


@pytest.fixture(scope="session")
def rounds(pytestconfig: pytest.Config, preset: str) -> Callable[[float], int]:
    """Return the number of rounds for a row, from the seconds that one round takes."""
    wanted = pytestconfig.getoption("--rounds")
    return lambda cost: wanted or min(MOST, max(LEAST, int(SECONDS[preset] / cost)))


@pytest.fixture(scope="session")
def folder(preset: str, pytestconfig: pytest.Config) -> Path:
    """The prepared model and images."""
    given = pytestconfig.getoption("--prepared")
    return (given or prepared(preset)).resolve()


@pytest.fixture(scope="session")
def arena(folder: Path, pytestconfig: pytest.Config, preset: str):
    arena = Arena(folder)
    arena.extra = {
        "preset": preset,
        "machine": machine_facts(),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0],
    }
    pytestconfig.stash[KEY] = arena
    yield arena
    arena.close()


KEY = pytest.StashKey[Arena]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config):
    arena = config.stash.get(KEY, None)
    if arena is None or not arena.results:
        return
    results = config.getoption("--results")
    results.mkdir(parents=True, exist_ok=True)
    data = {**arena.extra, "rows": [r.to_dict() for r in arena.results]}
    (results / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    write_page(results / "report.html", data, {r.row: r.times for r in arena.results})
    terminalreporter.section("hybrid-rt benchmarks")
    terminalreporter.write_line(format_tables(data))
    terminalreporter.write_line(f"written: {results / 'results.json'}, {results / 'report.html'}")
