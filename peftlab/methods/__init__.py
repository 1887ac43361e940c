"""METHODS: how a base is adapted. One file a method, one line here."""

from peftlab.methods.registry import (
    METHODS,
    adapt,
    heavier_than_its_base,
    peft_config,
    saved_bytes,
    trained_parameters,
)

__all__ = ["METHODS", "adapt", "heavier_than_its_base", "peft_config", "saved_bytes", "trained_parameters"]
