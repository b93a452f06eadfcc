"""Progress: a bar on a terminal, plain lines in a log, nothing for short work."""

import io
import time

import pytest

from hybrid_rt import progress as module
from hybrid_rt.progress import print_above, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Show progress after a moment, so that tests are short."""
    monkeypatch.setattr(module, "DELAY", 0.05)
    monkeypatch.setattr(module, "LINES_EVERY", 0.05)


def slow(count=3):
    for i in range(count):
        time.sleep(0.11)
        yield i


def test_progress_on_a_terminal_draws_a_bar():
    terminal = Terminal()
    assert list(progress(slow(), 3, label="x", stream=terminal)) == [0, 1, 2]
    assert "\rx:  67%|######" in terminal.getvalue()
    assert "\n" not in terminal.getvalue()
    assert not terminal.getvalue().split("\r")[-2].strip(), "the bar is removed at the end"


def test_progress_in_a_log_prints_plain_lines():
    log = io.StringIO()
    assert list(progress(slow(), 3, label="x", stream=log)) == [0, 1, 2]
    lines = log.getvalue().splitlines()
    assert [line.partition(", ")[0] for line in lines] == ["x: 1/3", "x: 2/3", "x: 3/3"]
    assert all(line.endswith(" left") for line in lines)
    assert "\r" not in log.getvalue()


def test_progress_of_short_work_prints_nothing(monkeypatch):
    monkeypatch.setattr(module, "DELAY", 60)
    monkeypatch.setattr(module, "LINES_EVERY", 60)
    for stream in (Terminal(), io.StringIO()):
        assert list(progress(range(3), 3, label="x", stream=stream)) == [0, 1, 2]
        assert stream.getvalue() == ""


def test_progress_left_early_removes_the_bar():
    terminal = Terminal()
    items = progress(slow(), 3, label="x", stream=terminal)
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert not terminal.getvalue().split("\r")[-2].strip()


def test_print_above_keeps_the_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    for i in progress(slow(), 3, label="x"):
        if i == 1:
            print_above("a message")
    assert "\ra message\n" in terminal.getvalue()
