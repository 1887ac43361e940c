"""Baselines of a run: the majority, and a linear probe on the frozen base, whose weights can start the head."""
