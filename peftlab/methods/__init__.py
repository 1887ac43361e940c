"""METHODS: the ways to adapt a base, with one file and one record per method."""

from peftlab.methods.registry import (
    METHODS,
    MethodRecord,
    TrainingHooks,
    count_trainable_parameters,
    create_peft_model,
    method_info,
    peft_config,
    saved_bytes,
    size_warning,
)

__all__ = [
    "METHODS",
    "MethodRecord",
    "TrainingHooks",
    "count_trainable_parameters",
    "create_peft_model",
    "method_info",
    "peft_config",
    "saved_bytes",
    "size_warning",
]
