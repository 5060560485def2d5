"""Measurements that are not tests: run ``python -m benchmarks --help``, or ``python -m benchmarks.speed``."""
