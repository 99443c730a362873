"""Benchmarks: ours, peers and limits side by side in one run."""
