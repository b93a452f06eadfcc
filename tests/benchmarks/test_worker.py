"""A benchmark row lives in a process of its own and says why it could not."""

import numpy as np
import pytest

from benchmarks.worker import RowError, Worker

ROWS = """
import os
from benchmarks.baselines import Row, Runner
import numpy as np

def good(folder):
    return Runner(pixels=lambda x: x.reshape(len(x), -1)[:, :2].astype(float),
                  files=lambda p: np.array([[len(q)] for q in p]), facts={"library": "none"})

def broken(folder):
    raise RuntimeError("no such device")

def dying(folder):
    os._exit(7)

ROWS = {f.__name__: Row(f.__name__, f) for f in (good, broken, dying)}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.jpg").touch()
    (tmp_path / "rows_for_test.py").write_text(ROWS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_worker_returns_times_logits_and_facts(folder):
    with Worker("good", folder, module="rows_for_test") as worker:
        assert worker.facts == {"library": "none"}
        assert worker.first_s > 0
        assert worker.ask("pixels", 2) > 0
        assert worker.ask("offline", 2, 3) > 0
        assert np.array_equal(worker.ask("logits", "pixels", [1]), [[12.0, 13.0]])
        assert worker.ask("memory") > 2**20
    worker.close()


def test_memory_is_the_row_s_own(folder):
    ours = np.ones(400 * 2**20, np.uint8)  # the parent's peak
    with Worker("good", folder, module="rows_for_test") as worker:
        assert worker.ask("memory") < ours.nbytes


@pytest.mark.parametrize(
    ("row", "message"), [("broken", "no such device"), ("dying", "process ended, code 7")]
)
def test_a_row_that_fails_says_why(folder, row, message):
    with pytest.raises(RowError, match=message):
        Worker(row, folder, module="rows_for_test")
