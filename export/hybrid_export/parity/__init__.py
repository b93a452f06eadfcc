"""Compare an exported file with PyTorch in FP32."""
