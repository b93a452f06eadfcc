"""Export hybrid classifiers to ONNX and TensorRT, with a certificate of parity."""

from hybrid_rt.cpu import prepare

prepare("torch")  # before any module here imports it
