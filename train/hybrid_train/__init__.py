"""Train ViT + CNN hybrid image classifiers with PyTorch."""

from hybrid_rt.cpu import prepare

prepare("torch")  # before any module here imports it
