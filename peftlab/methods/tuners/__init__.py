"""PEFT tuners of our own, registered with PEFT."""
