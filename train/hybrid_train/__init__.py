"""Train ViT + CNN hybrid image classifiers with PyTorch."""
