"""Latency, throughput and parity side by side: `pytest benchmarks`."""
