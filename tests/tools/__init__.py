"""Scripts that make golden data, and that stress or measure the runtime."""
