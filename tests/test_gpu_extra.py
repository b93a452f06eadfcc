"""``pip install 'hybrid-rt[gpu]'``: wheels only, and one CUDA major over all that it brings.

The registry is asked. TensorRT is left out of the resolution, since pip builds its packages from a
source archive that fetches NVIDIA's libraries from an index of their own; its name has the major.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

#: Packages without the major in their name whose version begins with it.
VERSIONED = {"cuda-bindings", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc"}


def requirements(extra, python):
    """What an extra asks for on that Python, with our own extras replaced by theirs."""
    for text in EXTRAS[extra]:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"python_version": python}):
            continue
        wanted.marker = None
        if wanted.name == "hybrid-rt":
            for other in sorted(wanted.extras):
                yield from requirements(other, python)
        else:
            yield wanted


def resolve(wanted, python, folder):
    """(name, version) of all that pip would install; skips if the registry does not respond."""
    report = folder / "report.json"
    options = ["--dry-run", "--ignore-installed", "--only-binary", ":all:", "--quiet"]
    options += ["--python-version", python, "--implementation", "cp"]
    for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014"):
        options += ["--platform", f"{tag}_x86_64"]
    options += ["--target", str(folder / "target"), "--report", str(report)]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *options]
    command += ["--timeout", "10", "--retries", "1", *map(str, wanted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip("the package registry did not respond in 300 s")
    silent = r"connection|timed out|name resolution"
    if done.returncode and re.search(silent, done.stderr, re.IGNORECASE):
        pytest.skip(f"the package registry does not respond: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())["install"]
    return {(f["metadata"]["name"].lower(), f["metadata"]["version"]) for f in found}


def cuda_majors(packages):
    """The CUDA majors of (name, version) pairs, with the packages that each comes from."""
    majors = {}
    for name, version in packages:
        suffix = re.search(r"-cu(\d{2})$", name)
        if suffix or name in VERSIONED:
            major = suffix[1] if suffix else version.partition(".")[0]
            majors.setdefault(major, []).append(name)
    return majors


@pytest.mark.parametrize(
    ("extra", "python", "major"),
    [
        ("gpu", "3.12", "13"),
        pytest.param("gpu", "3.10", "12", marks=pytest.mark.slow),
        pytest.param("gpu-cu12", "3.12", "12", marks=pytest.mark.slow),
    ],
)
def test_gpu_extra_resolves_to_wheels_of_one_cuda(extra, python, major, tmp_path):
    wanted = list(requirements(extra, python))
    tensorrt = [r for r in wanted if r.name.startswith("tensorrt")]
    others = [r for r in wanted if r not in tensorrt]
    found = resolve(others, python, tmp_path)
    names = {name for name, _ in found}
    assert {"onnxruntime-gpu", "cuda-bindings"} <= names, found
    assert any(name.startswith("nvidia-cudnn") for name in names)
    assert "pycuda" not in names
    assert set(cuda_majors([*found, *((r.name, "") for r in tensorrt)])) == {major}, found


def test_tensorrt_is_capped_below_the_next_major():
    for extra in ("gpu", "gpu-cu12"):
        (tensorrt,) = (r for r in map(Requirement, EXTRAS[extra]) if r.name.startswith("tensorrt"))
        assert "11.4.0.106" in tensorrt.specifier
        assert "12.0" not in tensorrt.specifier


def test_only_the_pycuda_extra_needs_a_compiler():
    asks = {extra for extra, texts in EXTRAS.items() if "pycuda" in str(texts)}
    assert asks == {"pycuda"}
    assert "pycuda" not in (ROOT / "requirements" / "dev.txt").read_text().lower()


def test_two_majors_are_seen():
    packages = [("nvidia-cudnn-cu12", "9.1"), ("cuda-bindings", "13.5.0"), ("numpy", "2.4")]
    assert cuda_majors(packages) == {"12": ["nvidia-cudnn-cu12"], "13": ["cuda-bindings"]}
