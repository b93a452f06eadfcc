"""Run hybrid image classifiers without PyTorch."""
