"""Direct preference optimization through TRL."""
