"""The files of one exported model: manifest, golden images, ONNX metadata."""
