"""Find, fingerprint and load the frozen base model with its inputs, with or without a head."""

from peftlab.base.device import choose_device
from peftlab.base.heads import head_config, lm_head_modules
from peftlab.base.loading import (
    FP16_OVERFLOW_MODEL_TYPES,
    Base,
    init_empty_model,
    load_backbone,
    load_base,
    load_tensors,
    load_with_head,
    model_class,
    suppress_transformers_output,
)
from peftlab.base.lookup import (
    INCOMPLETE,
    MODEL_PACKAGES,
    BaseFiles,
    ModelPackage,
    file_sha256,
    find_base,
    find_hub_snapshot,
)

__all__ = [
    "FP16_OVERFLOW_MODEL_TYPES",
    "INCOMPLETE",
    "MODEL_PACKAGES",
    "Base",
    "BaseFiles",
    "ModelPackage",
    "choose_device",
    "file_sha256",
    "find_base",
    "find_hub_snapshot",
    "head_config",
    "init_empty_model",
    "lm_head_modules",
    "load_backbone",
    "load_base",
    "load_tensors",
    "load_with_head",
    "model_class",
    "suppress_transformers_output",
]
