"""Export hybrid classifiers to ONNX and TensorRT, with a parity report."""

from hybrid_rt.cpu import prepare

prepare("torch")  # before any module here imports it
