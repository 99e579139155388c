"""Benchmarks: each prints one figure of the goals as a ratio, both sides measured side by side in one run."""
