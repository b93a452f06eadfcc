"""FP16, BF16 and INT8 written in the graph."""
