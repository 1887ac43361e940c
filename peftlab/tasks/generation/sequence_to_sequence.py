"""Text generation by encoder-decoder models: the base class of translation and summarization."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.tasks.inputs.columns import chosen_form, json_cell, optional_text_column, quoted, text_column
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.lost_characters import UNKNOWN_IN_INPUT, UNKNOWN_IN_TARGET, LostCharacters
from peftlab.tasks.inputs.source_target import SourceFeature, SourceTargetInputs
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.language_model_heads import Seq2SeqHead
from peftlab.tasks.outputs import GeneratedOutputs, TextGeneration
from peftlab.tasks.task import Example, Metric, ModelContext, Prediction, Scores, Targets, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_NEW_TOKENS = 128
Frame = tuple[list[int], list[int]]
"""The special tokens before and after a text."""


@dataclass(frozen=True)
class Source(Example):
    """A text and its references; at prediction there are none."""

    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class GeneratedText(Prediction):
    """The generated text for a source text.

    `finished` is false if generation stopped at `max_new_tokens`; `truncated` is true if the end of the input was
    removed because the input was too long. `target_column` is the key of the generated text in the output.
    """

    target_column: str
    written: str
    finished: bool
    truncated: bool = False

    def as_dict(self) -> dict[str, Any]:
        """`text`, the generated text under the key `target_column`, `finished`, and the key `cut` if the input was
        truncated."""
        prediction = {"text": self.text, self.target_column: self.written, "finished": self.finished}
        return prediction | ({"cut": True} if self.truncated else {})


class SequenceToSequenceTask(Task):
    """A task whose base encodes a source text and generates a target text.

    Source and target are truncated to `max_length` tokens. A row with several references is one training example for
    each. Scores compare generated texts with the references, with the generation settings of the adapter.
    """

    noun: ClassVar[str]
    """The targets in the plural."""
    metric_name: ClassVar[str]
    target_column: ClassVar[str]
    """The column of the targets, and the key of generated text in predictions."""
    inputs_class = SourceTargetInputs

    def __init__(
        self,
        *,
        labels: list[str] | None = None,
        prefix: str | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(labels=labels)
        self.prefix = prefix or ""
        self.generation = {"max_new_tokens": MAX_NEW_TOKENS, **(generation or {})}
        self.state = {"source": ([], []), "target": ([], []), "decoder_start": None, "forced_bos": None}
        self.metric = Metric(self.metric_name, self.score)
        self.targets = Targets(self.noun, self.count, self.lost)

    @property
    def options(self) -> dict[str, Any]:
        """The prefix of the inputs, and the settings for generating text."""
        return {"prefix": self.prefix, "generation": self.generation}

    @property
    def head(self) -> Seq2SeqHead:
        """The base model's decoder."""
        return Seq2SeqHead(self.state["decoder_start"])

    @property
    def outputs(self) -> GeneratedOutputs:
        """Generated text."""
        names = {"decoder_start_token_id": "decoder_start", "forced_bos_token_id": "forced_bos"}
        forced = {name: self.state[key] for name, key in names.items() if self.state[key] is not None}
        return GeneratedOutputs(TextGeneration(self.generation, self.stop_strings, self.state, forced))

    @abstractmethod
    def score(self, examples: Sequence[Source], predictions: Sequence[GeneratedText]) -> Scores:
        """Compare generated texts with the references."""

    def read(self, row: Row) -> Source:
        """Read `text` and its references: a string or a list of strings. Raises RowError."""
        chosen_form(row, ("text", self.target_column))
        return Source(text_column(row, "text"), row.where, references=tuple(self._references(row)))

    def _references(self, row: Row) -> list[str]:
        given = row.fields[self.target_column]
        if isinstance(given, str) and given.lstrip().startswith("["):
            given = json_cell(given, self.target_column) if given.rstrip().endswith('"]') else given
        several = given if isinstance(given, list) and given else [given]
        if not all(isinstance(text, str) and text.strip() for text in several):
            raise RowError(
                f"expected {self.target_column} to hold some text, or a list of texts, found {quoted(given)}"
            )
        return several

    def read_input(self, row: Row) -> Source:
        """Read the `text` of a row without references. Raises RowError."""
        chosen_form(row, ("text",))
        return Source(optional_text_column(row, "text"), row.where)

    def fit_labels(self, examples: Mapping[str, Sequence[Source]], errors: ErrorCollector) -> None:
        """Do nothing: this task has no labels."""
        return

    def bind_to_base(
        self, context: ModelContext, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector
    ) -> None:
        """Read the special tokens around sources and targets, and the decoder's start token."""
        self.state["source"] = _frame(context.inputs.tokenizer, "text")
        self.state["target"] = _frame(context.inputs.tokenizer, "text_target")
        self.state["decoder_start"] = getattr(context.config, "decoder_start_token_id", None)
        ends = self.state["target"][1] if context.inputs.tokenizer.eos_token is None else []
        self.state["end_tokens"] = [*context.end_tokens, *ends[-1:]]
        if context.inputs.tokenizer.eos_token is None and not ends:
            message = "the tokenizer of this base writes no token behind a target, so nothing would end a text."
            errors.add(message, key="base.model", hint="Set eos_token in its tokenizer_config.json.")

    def encode(
        self,
        examples: Sequence[Source],
        inputs: TextInputs,
        max_length: int,
        *,
        training: bool,
    ) -> list[list[Feature]]:
        """For training, one feature for each reference, both sides truncated to `max_length` tokens; else the source
        only."""
        tokenizer, lost = inputs.tokenizer, LostCharacters(inputs.tokenizer)
        sources = _tokens([f"{self.prefix}{example.text}" for example in examples], tokenizer)
        if not training:
            return [[self._feature(source, None, max_length)] for source in sources]
        targets = iter(_tokens([text for example in examples for text in example.references], tokenizer))
        return [
            [
                _without_lost(self._feature(source, next(targets), max_length), example.text, text, lost)
                for text in example.references
            ]
            for example, source in zip(examples, sources, strict=True)
        ]

    def _feature(self, source: list[int], target: list[int] | None, max_length: int) -> Feature:
        (before, after), budget = self.state["source"], max_length - sum(map(len, self.state["source"]))
        tokens = [*before, *source[:budget], *after]
        inputs = {"input_ids": tokens, "attention_mask": [1] * len(tokens)}
        if target is None:
            return SourceFeature(inputs, None, truncated=len(source) > budget)
        before, after = self.state["target"]
        full = [*before, *target, *after]
        ends = [(len(full) - 1, 0)] if len(full) <= max_length else []
        return SourceFeature(inputs, full[:max_length], ends, truncated=len(source) > budget or not ends)

    def count(self, example: Source) -> int:
        """The number of references."""
        return len(example.references)

    def lost(self, example: Source, features: Sequence[Feature]) -> int:
        """The number of references whose end is truncated, or that the tokenizer cannot write."""
        return sum(not feature.positions for feature in features)

    def stop_strings(self, inputs: Any) -> list[str]:
        """The tokenizer's eos token, and the recipe's `stop_strings`."""
        stop_strings = [inputs.tokenizer.eos_token or "", *self.generation.get("stop_strings", ())]
        return [ending for ending in stop_strings if ending]

    def decode(self, example: Source, features: Sequence[Feature], logits: Sequence[Any]) -> GeneratedText:
        """The generated text."""
        (prediction,), (feature,) = logits, features
        return GeneratedText(
            example.text, self.target_column, prediction.text.strip(), prediction.finished, feature.truncated
        )


def _without_lost(feature: Feature, source: str, target: str, lost: LostCharacters) -> Feature:
    """Remove the end of a target with characters that the tokenizer cannot write, so that it counts as lost."""
    is_lost = lost.any_in(target)
    warnings = [UNKNOWN_IN_TARGET] if is_lost else []
    warnings += [UNKNOWN_IN_INPUT] if lost.any_in(source) else []
    return replace(feature, positions=[] if is_lost else feature.positions, warnings=warnings)


def _tokens(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Tokenize texts without special tokens."""
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return encoded


def _frame(tokenizer: "PreTrainedTokenizerBase", side: str) -> Frame:
    """The special tokens around a text of one `side` (text or text_target, the tokenizer's argument)."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer(**{side: "a"})["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]
