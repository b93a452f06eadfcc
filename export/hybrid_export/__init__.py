"""Export hybrid classifiers to ONNX and TensorRT, with a certificate of parity."""
