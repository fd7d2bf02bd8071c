"""Benchmarks: each figure is the ratio of a named baseline to ddbench, both measured by turns in the same minutes."""
