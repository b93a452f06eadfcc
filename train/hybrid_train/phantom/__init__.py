"""Synthetic mammograms for demos, tests and benchmarks."""

from hybrid_train.phantom.dataset import write_parquet
from hybrid_train.phantom.generate import generate

__all__ = [
    "generate",
    "write_parquet",
]
