"""Text inputs: the base model's tokenizer, prepared for the tasks, and batches of token ids."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from peftlab.errors import IntegrityError
from peftlab.imports import tokenizers, torch, transformers
from peftlab.tasks.inputs.coverage import Coverage, measure_coverage
from peftlab.tasks.inputs.features import IGNORED, Feature
from peftlab.tasks.inputs.inputs import Batch, Inputs, LossSegment, ProcessorFiles
from peftlab.tasks.inputs.packing import pack_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MASK = "attention_mask"
PAD_TOKENS = ("pad_token", "eos_token", "sep_token", "cls_token", "bos_token", "mask_token", "unk_token")
"""Special tokens, in the order in which one is chosen for padding."""


class TextInputs(Inputs):
    """Text for tasks that need to know which word a token belongs to: every word is tokenized after a space."""

    processor_name = "tokenizer"
    packages = ("transformers", "tokenizers")
    add_prefix_space: ClassVar[bool] = True

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, files: ProcessorFiles, *, trust_remote_code: bool = False) -> Self:
        """Load the tokenizer; see `load_tokenizer`."""
        prefixed = cls.add_prefix_space
        tokenizer = load_tokenizer(files, trust_remote_code=trust_remote_code, add_prefix_space=prefixed)
        tokenizer.split_special_tokens = prefixed and _head_counts_special_tokens(files)
        return cls(tokenizer)

    @classmethod
    def from_loaded(cls, other: Inputs) -> Self | None:
        """See `Inputs.from_loaded`."""
        same = isinstance(other, TextInputs) and other.add_prefix_space == cls.add_prefix_space
        return cls(other.processor) if same else None

    @property
    def processor(self) -> "PreTrainedTokenizerBase":
        """The tokenizer."""
        return self.tokenizer

    @property
    def fingerprint(self) -> str:
        """See `tokenizer_hash`."""
        return tokenizer_hash(self.tokenizer)

    @property
    def cache_key(self) -> list[Any]:
        """What else a tokenizer's output depends on."""
        tokenizer = self.tokenizer
        rules = [type(tokenizer).__name__, tokenizer.truncation_side, tokenizer.model_input_names]
        rules.append(tokenizer.split_special_tokens)
        return [*super().cache_key, *rules, tokenizer.special_tokens_map]

    def max_length(self, model: "PreTrainedModel") -> int:
        """The longest input in tokens: the tokenizer's limit, or else the positions of the model."""
        config = model.config
        positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 0
        if positions > 0:  # XLNet's are -1, which means any length
            positions -= _unused_positions(model)
        return min(limit for limit in (self.tokenizer.model_max_length, positions) if limit > 0)

    def configure_model(self, model: "PreTrainedModel") -> None:
        """Set the id of the padding token: heads of decoders look for the last token that is not padding.

        It stays where positions are counted from it, as in RoBERTa.
        """
        config = model.config.get_text_config()
        if getattr(config, "pad_token_id", None) is None or not _unused_positions(model):
            config.pad_token_id = self.tokenizer.pad_token_id

    def coverage(self, texts: Sequence[str]) -> Coverage:
        """See `measure_coverage`."""
        return measure_coverage(texts, self.tokenizer)

    def has_unknown(self, features: Sequence[Feature]) -> bool:
        """Whether a token is the unknown token, or a feature has special tokens only."""
        special = set(self.tokenizer.all_special_ids)
        unknown = self.tokenizer.unk_token_id
        ids = [feature.inputs["input_ids"] for feature in features]
        return any(unknown in tokens or special.issuperset(tokens) for tokens in ids)

    def conflict(self, model: "PreTrainedModel") -> str:
        """A sentence if the tokenizer has tokens for which the model has no embedding; added ones may never occur."""
        embeddings = cast(Any, model.get_input_embeddings())
        if len(self.tokenizer) <= (count := len(embeddings.weight)):
            return ""
        added = self.tokenizer.added_tokens_decoder
        missing = [token for token, i in self.tokenizer.get_vocab().items() if i >= count and i not in added]
        if not missing:
            return ""
        return (
            f"the tokenizer has {len(self.tokenizer)} tokens, and the weights have embeddings for {count}: none for "
            f"'{missing[0]}'."
        )

    def pad(self, features: Sequence[Feature], side: Literal["left", "right"] | None = None) -> Batch:
        """Pad token ids and masks, each (batch, tokens), on the tokenizer's own side unless `side` is given."""
        inputs = [feature.inputs for feature in features]
        options = {"return_tensors": "pt", "padding_side": side, "return_attention_mask": True}
        return dict(cast(Any, self.tokenizer).pad(inputs, **options))

    def widen(self, batch: Mapping[str, "torch.Tensor"], length: int) -> Batch:
        """Pad token ids and masks further, on the tokenizer's side."""
        padding = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        missing = max(0, length - self.mask(batch).shape[1])
        extra = (missing, 0) if self.tokenizer.padding_side == "left" else (0, missing)
        return {
            name: torch.nn.functional.pad(tensor, extra, value=padding.get(name, 0))
            if name in (*padding, MASK)
            else tensor
            for name, tensor in batch.items()
        }

    def mask(self, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """The attention mask, (batch, tokens)."""
        return batch[MASK]

    def probe(self, model: "PreTrainedModel", rows: int, length: int) -> Batch:
        """Ones as token ids, (rows, length), also for a decoder if there is one."""
        return _full_batch(torch.ones((rows, length), dtype=torch.long), model)

    def random_batch(self, model: "PreTrainedModel", rows: int, length: int) -> Batch:
        """Random token ids, (rows, length), the same for all models of one vocabulary; no position is padding."""
        generator = torch.Generator().manual_seed(0)
        return _full_batch(torch.randint(model.config.vocab_size, (rows, length), generator=generator), model)

    def pack(self, features: Sequence[Feature], length: int) -> Batch:
        """Put several texts into each row; see `pack_tokens`."""
        return pack_tokens(features, length, cast(int, self.tokenizer.pad_token_id or 0))

    def stream_decoder(self) -> Any:
        """A `TextIteratorStreamer` without prompt and special tokens."""
        return transformers.TextIteratorStreamer(cast(Any, self.tokenizer), skip_prompt=True, skip_special_tokens=True)

    def loss_segments(self, feature: Feature) -> Iterator[LossSegment]:
        """The text of neighboring tokens that are all in the loss or all not."""
        for in_loss, group in groupby(self.loss_mask(feature), lambda token: token[1]):
            tokens = [token for token, _ in group]
            yield LossSegment(str(self.tokenizer.decode(tokens)), len(tokens), in_loss)

    def loss_mask(self, feature: Feature) -> list[tuple[int, bool]]:
        """The token ids of a feature with token labels, each with whether it is in the loss."""
        tokens = feature.inputs["input_ids"]
        return [(token, label != IGNORED) for token, label in zip(tokens, feature.labels, strict=True)]


class PlainTextInputs(TextInputs):
    """Text that is tokenized exactly as it is, for language models."""

    add_prefix_space = False


def _full_batch(token_ids: "torch.Tensor", model: "PreTrainedModel") -> Batch:
    """A batch without padding on the model's device; a decoder, if there is one, gets the same token ids."""
    token_ids = token_ids.to(model.device)
    decoder = {"decoder_input_ids": token_ids} if model.config.is_encoder_decoder else {}
    return {"input_ids": token_ids, MASK: torch.ones_like(token_ids), **decoder}


def load_tokenizer(
    files: ProcessorFiles, *, trust_remote_code: bool = False, add_prefix_space: bool = True
) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a base model; with `add_prefix_space` it takes text that is already split into words.

    Raises:
        IntegrityError: it is not a fast tokenizer; only these know which word a token belongs to.
    """
    load = transformers.AutoTokenizer.from_pretrained
    tokenizer = load(files.folder, trust_remote_code=trust_remote_code)
    if add_prefix_space and getattr(tokenizer, "add_prefix_space", None) is False:
        tokenizer = load(files.folder, trust_remote_code=trust_remote_code, add_prefix_space=True)
    if tokenizer.is_fast and add_prefix_space:
        _add_prefix_space(tokenizer)
    tokenizer.truncation_side = "right"  # the ledger counts what truncation at the end loses
    if not tokenizer.is_fast:
        raise IntegrityError(f"base '{files.model}' has no fast tokenizer (tokenizer.json); peftlab needs one.")
    _set_pad_token(tokenizer, files)
    return cast("PreTrainedTokenizerBase", tokenizer)


def _set_pad_token(tokenizer: Any, files: ProcessorFiles) -> None:
    """Use another special token if there is none for padding (GPT-2, Llama): padding is masked, so any token will do.

    Raises:
        IntegrityError: there is no special token at all.
    """
    for kind in PAD_TOKENS:
        token = getattr(tokenizer, kind)
        if token is not None and _has_embedding(tokenizer.convert_tokens_to_ids(token), files):
            tokenizer.pad_token = token
            return
    raise IntegrityError(
        f"the tokenizer of base '{files.model}' has no special token with which short rows can be padded. Set one in "
        f"its tokenizer_config.json: {', '.join(PAD_TOKENS)}."
    )


def _head_counts_special_tokens(files: ProcessorFiles) -> bool:
    """Whether heads of this architecture expect a certain number of special tokens in each row.

    Heads of encoder-decoders read the last end-of-sequence token, Longformer's for question answering separates the
    question by them. So `</s>` in a text of the user is read as four characters, not as that token.
    """
    return bool(files.config.get("is_encoder_decoder")) or files.config.get("model_type") == "longformer"


def _has_embedding(token: Any, files: ProcessorFiles) -> bool:
    """Whether the base model has an embedding for a token; one that a tokenizer's class adds may have none."""
    return bool(token < files.config.get("vocab_size", math.inf))


def _add_prefix_space(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Set the option in byte-level BPE (RoBERTa, GPT-2, ModernBERT): some tokenizers ignore it when they are loaded."""
    pre_tokenizers = tokenizers.pre_tokenizers
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    parts: Any = pre_tokenizer if isinstance(pre_tokenizer, pre_tokenizers.Sequence) else [pre_tokenizer]
    for part in parts:
        if isinstance(part, pre_tokenizers.ByteLevel):
            part.add_prefix_space = True


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The sha256 of a tokenizer's vocabulary and rules.

    It depends neither on what was padded or truncated before nor on `add_prefix_space`.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str(), object_hook=_with_prefix_space)
    for setting in ("truncation", "padding"):
        rules.pop(setting, None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _with_prefix_space(rule: dict[str, Any]) -> dict[str, Any]:
    return rule | ({"add_prefix_space": True} if "add_prefix_space" in rule else {})


def _unused_positions(model: "PreTrainedModel") -> int:
    """RoBERTa and its relatives count positions from the one after padding's, so the first few are never used."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings"):
            padding = getattr(module, "padding_idx", None)
            return 0 if padding is None else padding + 1
    return 0
