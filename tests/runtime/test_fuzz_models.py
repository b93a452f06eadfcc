"""Damaged model files: typed errors, no crash, no hang, memory bounded.

Lone ONNX files go into the libraries, each in a child process with 4 GiB of address space above
what the libraries take; files of a bundle are stopped by their digest.
"""

import pytest

from tools import fuzz_models

ALLOWED = {
    "BackendError",
    "ModelFileError",
    "SpecError",
    "DigestError",
    "opens and runs",
    "opens, asks for large images",
}


@pytest.mark.parametrize("bundle", [False, True], ids=["alone", "bundle"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("count", [250, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_models(tmp_path, backend, bundle, count):
    fuzz_models.prepare(tmp_path)
    counts, seeds = fuzz_models.fuzz(tmp_path, count, backend, bundle=bundle, first=count)
    assert set(counts) <= ALLOWED, (counts, seeds)
    assert sum(counts.values()) == count
    if bundle:
        assert counts["DigestError"] >= 0.99 * count
