"""Label sets and tag sequences."""
