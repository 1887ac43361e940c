"""The frozen base: found and fingerprinted, loaded with its tokenizer, with or without a head."""

from peftlab.base.device import choose_device
from peftlab.base.heads import head_config, own_head
from peftlab.base.loading import (
    BEYOND_FP16,
    Base,
    blank_with_head,
    load_backbone,
    load_base,
    load_with_head,
    quietly,
    tensors_named,
)
from peftlab.base.lookup import PACKAGES, PARTLY, BaseFiles, Package, file_sha256, find_base, hub_snapshot
from peftlab.base.tokenizer import UNLIMITED, load_tokenizer, max_input_length, tokenizer_hash

__all__ = [
    "BEYOND_FP16",
    "PACKAGES",
    "PARTLY",
    "UNLIMITED",
    "Base",
    "BaseFiles",
    "Package",
    "blank_with_head",
    "choose_device",
    "file_sha256",
    "find_base",
    "head_config",
    "hub_snapshot",
    "load_backbone",
    "load_base",
    "load_tokenizer",
    "load_with_head",
    "max_input_length",
    "own_head",
    "quietly",
    "tensors_named",
    "tokenizer_hash",
]
