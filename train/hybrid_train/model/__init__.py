"""The network, its checkpoints and what it starts from."""
