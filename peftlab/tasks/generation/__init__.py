"""Tasks that generate text, and how it is scored."""
