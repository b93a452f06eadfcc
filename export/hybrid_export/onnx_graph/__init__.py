"""ONNX graphs: made, cleaned, written, evaluated and counted."""
