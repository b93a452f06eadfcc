"""Run TensorRT plans; ``hybrid_rt.tensorrt.builder`` makes them."""
