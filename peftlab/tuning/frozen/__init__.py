"""Frozen layers below the lowest trainable one, computed once per run."""
