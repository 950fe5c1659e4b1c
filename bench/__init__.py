"""Benchmarks: what ftd costs, each figure beside what it is to be compared with.  They are not installed."""
