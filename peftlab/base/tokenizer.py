"""The base's tokenizer, made ready for our tasks, and the longest input that both of them take."""

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

from peftlab.base.lookup import BaseFiles
from peftlab.errors import IntegrityError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


UNLIMITED = 10**20  # from this length on, Transformers means that there is none


def load_tokenizer(
    files: BaseFiles, *, trust_remote_code: bool = False, whole_text: bool = False
) -> "PreTrainedTokenizerBase":
    """The base's tokenizer, ready for text that is already split into words, unless it is for `whole_text`.

    Raises:
        IntegrityError: it is not a fast tokenizer, which alone can tell which word a token belongs to.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=trust_remote_code)
    if not whole_text and getattr(tokenizer, "add_prefix_space", None) is False:
        tokenizer = AutoTokenizer.from_pretrained(
            files.folder, trust_remote_code=trust_remote_code, add_prefix_space=True
        )
    if tokenizer.is_fast and not whole_text:
        _begin_words_with_a_blank(tokenizer)
    tokenizer.truncation_side = "right"  # the ledger counts what a cut at the end loses
    if tokenizer.pad_token is None or not _is_embedded(tokenizer.pad_token_id, files):
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2, Llama: padding is masked out, so any token will do
    if not tokenizer.is_fast:
        raise IntegrityError(f"base '{files.model}' has no fast tokenizer (tokenizer.json); peftlab needs one.")
    return tokenizer


def _is_embedded(token: Any, files: BaseFiles) -> bool:
    """Whether the base has an embedding for a token: one that a tokenizer's class adds may have none."""
    return bool(token < files.config.get("vocab_size", math.inf))


def _begin_words_with_a_blank(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Byte-level BPE (RoBERTa, GPT-2, ModernBERT) takes words one by one only so; some tokenizers ignore the option."""
    from tokenizers import pre_tokenizers

    whole = tokenizer.backend_tokenizer.pre_tokenizer
    parts: Any = whole if isinstance(whole, pre_tokenizers.Sequence) else [whole]
    for part in parts:
        if isinstance(part, pre_tokenizers.ByteLevel):
            part.add_prefix_space = True


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of the tokenizer's vocabulary and rules, whatever was padded or cut with it before.

    It is the same for whole texts and for words.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str(), object_hook=_words_begin_with_a_blank)
    for setting in ("truncation", "padding"):
        rules.pop(setting, None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _words_begin_with_a_blank(rule: dict[str, Any]) -> dict[str, Any]:
    return rule | ({"add_prefix_space": True} if "add_prefix_space" in rule else {})


def max_input_length(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> int:
    """The longest input in tokens: what the tokenizer says, or else the positions of the model; from
    `UNLIMITED` on, neither does."""
    positions = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    if positions:
        positions -= _positions_before_the_first(model)
    return min(limit for limit in (tokenizer.model_max_length, positions) if limit)


def _positions_before_the_first(model: "PreTrainedModel") -> int:
    """RoBERTa and its kin count positions from the one after padding's, so that the first few are never used."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings"):
            padding = getattr(module, "padding_idx", None)
            return 0 if padding is None else padding + 1
    return 0
