"""The regression guard: falls are named, gains pass, other machines are refused."""

import json

import pytest

from benchmarks.compare import main, regressions

MACHINE = {"amx": False, "avx512_bf16": True, "cores": 2}
NAME = "batch 1 / hybrid-rt bf16 / PyTorch eager fp32"


def write_results(path, ratio, machine=MACHINE):
    rows = [
        {"table": "batch 1", "row": "hybrid-rt bf16", "faster_than": {"PyTorch eager fp32": ratio}},
        {"table": "batch 1", "row": "ONNX Runtime fp32", "faster_than": {"PyTorch eager fp32": 9}},
    ]
    path.write_text(json.dumps({"preset": "tiny", "machine": machine, "rows": rows}))
    return str(path)


@pytest.fixture
def baseline(tmp_path):
    path = tmp_path / "baseline.json"
    assert main([write_results(tmp_path / "first.json", 4.0), str(path), "--update"]) == 0
    return path


def test_update_keeps_our_ratios_only(baseline):
    assert json.loads(baseline.read_text()) == {"tiny, avx512-bf16, 2 cores": {NAME: 4.0}}


def test_several_runs_keep_lowest_ratio(tmp_path, capsys):
    paths = [write_results(tmp_path / f"{ratio}.json", ratio) for ratio in (4.0, 3.0, 2.0)]
    kept = str(tmp_path / "kept.json")
    assert main([*paths[:2], kept, "--update"]) == 0
    assert json.loads((tmp_path / "kept.json").read_text()) == {
        "tiny, avx512-bf16, 2 cores": {NAME: 3.0}
    }
    assert main([paths[2], paths[1], kept]) == 0
    assert main([paths[2], kept]) == 1
    other = write_results(tmp_path / "amx.json", 4.0, MACHINE | {"amx": True})
    assert main([paths[0], other, kept]) == 2
    assert "several kinds" in capsys.readouterr().err


@pytest.mark.parametrize(("ratio", "code"), [(3.7, 0), (3.5, 1), (5.0, 0)])
def test_a_fall_beyond_the_tolerance_fails(tmp_path, baseline, capsys, ratio, code):
    results = write_results(tmp_path / "second.json", ratio)
    assert main([results, str(baseline)]) == code
    out = capsys.readouterr().out
    assert (f"{NAME}: was 4.00, is 3.50" in out) == (code == 1)


def test_a_row_that_is_gone_is_a_regression():
    assert regressions({}, {NAME: 4.0}, 0.1) == [f"{NAME}: was 4.00, not measured now"]


def test_another_kind_of_machine_is_not_compared(tmp_path, baseline, capsys):
    machine = {**MACHINE, "amx": True}
    assert main([write_results(tmp_path / "amx.json", 4.0, machine), str(baseline)]) == 2
    assert "no ratios are kept for tiny, amx, 2 cores" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_results_file_is_a_usage_error(tmp_path, baseline, capsys, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert main([str(path), str(baseline)]) == 2
    assert "cannot read the results" in capsys.readouterr().err
