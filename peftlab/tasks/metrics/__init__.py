"""Scores of decoded predictions, each by a well-kept library."""
