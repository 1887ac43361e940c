"""Tuners of our own, in the form that PEFT's registry takes."""
