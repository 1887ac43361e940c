"""A text in another language."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftlab.errors import ErrorCollector, suggest
from peftlab.tasks.generation.sequence_to_sequence import GeneratedText, SequenceToSequenceTask, Source
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.metrics.overlap import bleu_and_chrf
from peftlab.tasks.task import ModelContext, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIDES = {"source_language": "src_lang", "target_language": "tgt_lang"}


class TranslationTask(SequenceToSequenceTask):
    """Rows have `text` and `translation`, one or a list of several.

    Multilingual bases (NLLB, mBART) need `source_language` and `target_language`, codes of their tokenizers. Other
    bases have fixed languages, or read them from the `prefix`, such as T5.
    """

    type = "translation"
    noun = "translations"
    target_column = "translation"
    metric_name = "bleu"

    def __init__(
        self,
        *,
        labels: list[str] | None = None,
        prefix: str | None = None,
        generation: Mapping[str, Any] | None = None,
        source_language: str | None = None,
        target_language: str | None = None,
        bleu_tokenize: str = "13a",
    ) -> None:
        super().__init__(labels=labels, prefix=prefix, generation=generation)
        self.source_language, self.target_language = source_language, target_language
        self.bleu_tokenize = bleu_tokenize

    @property
    def options(self) -> dict[str, Any]:
        """And the languages, and how BLEU splits texts."""
        languages = {"source_language": self.source_language, "target_language": self.target_language}
        return {**super().options, **languages, "bleu_tokenize": self.bleu_tokenize}

    def bind_to_base(
        self, context: ModelContext, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector
    ) -> None:
        """Tell the tokenizer the languages, and take what it writes around texts in them; see `Task.bind_to_base`."""
        tokenizer = copy.deepcopy(context.inputs.tokenizer)  # others share it
        for side, theirs in SIDES.items():
            self._tell(tokenizer, side, theirs, errors)
        if errors.issues:
            return
        super().bind_to_base(replace(context, inputs=TextInputs(tokenizer)), examples, errors)
        if self.target_language:
            self._begin_with(tokenizer.convert_tokens_to_ids(self.target_language))

    def _tell(self, tokenizer: "PreTrainedTokenizerBase", side: str, theirs: str, errors: ErrorCollector) -> None:
        language, knows = getattr(self, side), hasattr(tokenizer, theirs)
        if language and not knows:
            hint = "Remove it; for a base such as T5, name the languages in task.prefix."
            errors.add("the tokenizer of this base has no language codes.", key=f"task.{side}", hint=hint)
        elif knows and not language:
            hint = f"Name it as the tokenizer does: {', '.join(_languages(tokenizer)[:5])}, …"
            errors.add("this base has many languages, and needs to know which.", key=f"task.{side}", hint=hint)
        elif language and language not in _languages(tokenizer):
            hint = suggest(language, _languages(tokenizer), what="It knows")
            errors.add(f"the tokenizer of this base knows no language '{language}'.", key=f"task.{side}", hint=hint)
        elif language:
            setattr(tokenizer, theirs, language)

    def _begin_with(self, language: int) -> None:
        """The target language is the first token that is written, or, as in mBART's first version, comes before it."""
        before, after = self.state["target"]
        if language in before:
            self.state["forced_bos"] = language
        elif language in after:
            self.state["decoder_start"] = language

    def score(self, examples: Sequence[Source], predictions: Sequence[GeneratedText]) -> Scores:
        """BLEU and chrF; see `bleu_and_chrf`."""
        written = [prediction.written for prediction in predictions]
        return bleu_and_chrf(written, [example.references for example in examples], self.bleu_tokenize)


def _languages(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The codes it knows: special tokens beyond the usual."""
    usual = set(tokenizer.special_tokens_map.values())
    return [token for token in tokenizer.all_special_tokens if token not in usual]
