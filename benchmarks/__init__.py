"""Measurements, one command each; results are kept in benchmarks/results/."""
