"""Synthetic mammograms, where real ones may not be shipped."""

from hybrid_train.phantom.generate import generate, write_parquet

__all__ = [
    "generate",
    "write_parquet",
]
