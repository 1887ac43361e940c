"""How a task's rows become model inputs, per modality."""
