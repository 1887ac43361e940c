"""Benchmarks, one command each; results are stored in benchmarks/results/."""
