"""The network, its checkpoints and its first weights."""
