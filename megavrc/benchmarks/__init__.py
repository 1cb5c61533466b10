"""Benchmarks: the cost of each part on this machine, beside its point of comparison."""
