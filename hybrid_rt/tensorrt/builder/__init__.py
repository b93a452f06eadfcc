"""Building of TensorRT engines. A process that only predicts imports no module of this package."""
