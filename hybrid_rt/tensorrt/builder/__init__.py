"""Build TensorRT plans. A process that only predicts imports nothing of this package."""
