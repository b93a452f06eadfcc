"""python -m hybrid_rt: what is here and the command that would make the rest work."""

import json
import subprocess
import sys

import pytest

from hybrid_rt import environment
from hybrid_rt.cpu import CpuProfile, Measurement, cpu_profile, process
from hybrid_rt.environment import main


@pytest.fixture
def profile_file(tmp_path, monkeypatch):
    """A profile by a file, so that nothing is probed."""
    found = {
        "openvino fp32": Measurement(status="ran", milliseconds=16.0),
        "openvino bf16": Measurement(status="died", detail="SIGILL"),
    }
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(CpuProfile(measurements=found, note="by hand").to_dict()))
    monkeypatch.setenv(process.OVERRIDE, str(path))
    return path


def test_report_for_people(profile_file, capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("hybrid-rt ")
    assert any(line.split()[:2] == ["openvino", "bf16"] and "SIGILL" in line for line in lines)
    assert "  note: by hand" in lines
    assert "yes  OpenVINO on the CPU: fp32" in lines
    assert "yes  DICOM files: installed" in lines


def test_report_as_json_is_a_profile_again(profile_file, tmp_path, monkeypatch, capsys):
    assert main(["--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["packages"]["numpy"]
    assert data["cpu"]["profile"]["measurements"]["openvino fp32"]["milliseconds"] == 16
    report = tmp_path / "report.json"
    report.write_text(json.dumps(data))
    monkeypatch.setenv(process.OVERRIDE, str(report))
    assert cpu_profile().milliseconds("openvino", "fp32") == 16


def test_what_is_missing_comes_with_its_command(profile_file, monkeypatch, capsys):
    absent = ("openvino", "pydicom", "timm")
    real = environment._found
    monkeypatch.setattr(environment, "_found", lambda name: name not in absent and real(name))
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for what, extra in (("OpenVINO on the CPU", "cpu"), ("DICOM", "dicom"), ("training", "train")):
        (place,) = (i for i, line in enumerate(lines) if line.startswith(f"no   {what}"))
        assert lines[place + 1].strip() == f"pip install 'hybrid-rt[{extra}]'"


def test_bad_profile_and_usage(monkeypatch, capsys):
    monkeypatch.setenv(process.OVERRIDE, "/nowhere/cpu.json")
    assert main([]) == 2
    assert "HYBRID_RT_CPU_PROFILE is /nowhere/cpu.json" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["--jso"])
    assert end.value.code == 2


def test_module_runs_as_a_command(profile_file):
    command = [sys.executable, "-m", "hybrid_rt", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["cpu"]["cores"] >= 1
