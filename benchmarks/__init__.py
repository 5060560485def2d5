"""Measurements that are not tests: run them with ``python -m benchmarks.<name>``."""
