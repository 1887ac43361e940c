"""Load the base's tokenizer, and find the longest input that the base and its tokenizer accept."""

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

from peftlab.base.lookup import BaseFiles
from peftlab.errors import IntegrityError
from peftlab.imports import tokenizers, transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_LENGTH_LIMIT = 10**20
"""Transformers gives at least this length where the tokenizer has no limit."""


def load_tokenizer(
    files: BaseFiles, *, trust_remote_code: bool = False, whole_text: bool = False
) -> "PreTrainedTokenizerBase":
    """Load the base's tokenizer for text that is already split into words, or for `whole_text`.

    Raises:
        IntegrityError: it is not a fast tokenizer, and only a fast one knows the word of each token.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(files.folder, trust_remote_code=trust_remote_code)
    if not whole_text and getattr(tokenizer, "add_prefix_space", None) is False:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            files.folder, trust_remote_code=trust_remote_code, add_prefix_space=True
        )
    if tokenizer.is_fast and not whole_text:
        _enable_prefix_space(tokenizer)
    tokenizer.truncation_side = "right"  # the ledger counts what truncation at the end loses
    if tokenizer.pad_token is None or not _is_embedded(tokenizer.pad_token_id, files):
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2, Llama: padding is masked, so any token works
    if not tokenizer.is_fast:
        raise IntegrityError(f"base '{files.model}' has no fast tokenizer (tokenizer.json); peftlab needs one.")
    return tokenizer


def _is_embedded(token: Any, files: BaseFiles) -> bool:
    """Whether the base has an embedding for this token id; a token added by the tokenizer's class may have none."""
    return bool(token < files.config.get("vocab_size", math.inf))


def _enable_prefix_space(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Set `add_prefix_space`, which byte-level BPE needs for single words, in the backend: some tokenizers ignore the
    option of their constructor."""
    pre_tokenizers = tokenizers.pre_tokenizers
    top = tokenizer.backend_tokenizer.pre_tokenizer
    parts: Any = top if isinstance(top, pre_tokenizers.Sequence) else [top]
    for part in parts:
        if isinstance(part, pre_tokenizers.ByteLevel):
            part.add_prefix_space = True


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of the tokenizer's vocabulary and rules, without its padding and truncation settings.

    It is the same whether the tokenizer was loaded for whole texts or for words.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str(), object_hook=_with_prefix_space)
    for setting in ("truncation", "padding"):
        rules.pop(setting, None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _with_prefix_space(rule: dict[str, Any]) -> dict[str, Any]:
    return rule | ({"add_prefix_space": True} if "add_prefix_space" in rule else {})


def max_input_length(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> int:
    """The longest input in tokens: the smaller limit of tokenizer and model; `NO_LENGTH_LIMIT` or more if neither
    has one."""
    positions = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    if positions:
        positions -= _unused_positions(model)
    return min(limit for limit in (tokenizer.model_max_length, positions) if limit)


def _unused_positions(model: "PreTrainedModel") -> int:
    """Positions that are never used: RoBERTa and similar models count from the one after the padding position."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings"):
            padding = getattr(module, "padding_idx", None)
            return 0 if padding is None else padding + 1
    return 0
