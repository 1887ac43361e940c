"""METHODS: how a base is adapted. One file a method, one line here."""

from peftlab.methods.adapting import METHODS, adapt, peft_config, trained_parameters

__all__ = ["METHODS", "adapt", "peft_config", "trained_parameters"]
