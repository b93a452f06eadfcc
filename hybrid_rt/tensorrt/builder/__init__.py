"""Build TensorRT engines. A process that only predicts imports nothing of this package."""
