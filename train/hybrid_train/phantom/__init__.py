"""Synthetic mammograms, where real ones may not be shipped."""

from hybrid_train.phantom.dataset import write_parquet
from hybrid_train.phantom.generate import generate

__all__ = [
    "generate",
    "write_parquet",
]
