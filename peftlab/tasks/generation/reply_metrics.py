"""Score causal-lm by generated replies (ROUGE, BLEU, chrF) instead of perplexity."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftlab.errors import ErrorCollector
from peftlab.tasks.causal_lm import CausalLmTask
from peftlab.tasks.chat.examples import Chat, Passage, Reply, is_prompt
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.metrics.overlap import bleu_and_chrf, rouge
from peftlab.tasks.task import Metric, ModelContext, Scores

if TYPE_CHECKING:
    pass

PERPLEXITY = "perplexity"
MAIN_SCORES = {"rouge": "rougeL", "bleu": "bleu"}


def causal_lm(*, scored_by: str = PERPLEXITY, **written: Any) -> CausalLmTask:
    """Make the task for the recipe's `scored_by`."""
    return CausalLmTask(**written) if scored_by == PERPLEXITY else GeneratedReplyTask(scored_by=scored_by, **written)


class GeneratedReplyTask(CausalLmTask):
    """Training is as in `CausalLmTask`; for scoring, a reply is generated and compared with the last answer."""

    def __init__(self, *, scored_by: str, **written: Any) -> None:
        super().__init__(**written)
        self.scored_by = scored_by
        self.metric = Metric(MAIN_SCORES[scored_by], self.score)

    @property
    def options(self) -> dict[str, Any]:
        """The options of `CausalLmTask`, and `scored_by`."""
        return {**super().options, "scored_by": self.scored_by}

    def bind_to_base(
        self, context: ModelContext, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector
    ) -> None:
        """See `CausalLmTask.bind_to_base`; plain text in validation or test is an error."""
        super().bind_to_base(context, examples, errors)
        for split, chosen in examples.items():
            plain = sum(isinstance(example, Passage) and not example.text for example in chosen)
            if plain and split != "train":
                message = f"{plain} rows of {split} are plain text, which has no prompt to reply to."
                errors.add(message, key="task.scored_by", hint="Remove it: perplexity is the score of plain text.")

    def encode(
        self,
        examples: Sequence[Chat | Passage],
        inputs: TextInputs,
        max_length: int,
        *,
        training: bool,
    ) -> list[list[Feature]]:
        """See `CausalLmTask.encode`; for scoring, examples are encoded without their last answer."""
        asked = examples if training else [_without_answer(example) for example in examples]
        return super().encode(asked, inputs, max_length, training=training)

    def decode(self, example: Chat | Passage, features: Sequence[Feature], logits: Sequence[Any]) -> Any:
        """The reply."""
        return super().decode(_without_answer(example), features, logits)

    def score(self, examples: Sequence[Chat | Passage], predictions: Sequence[Reply]) -> Scores:  # type: ignore[override]
        """See `rouge` and `bleu_and_chrf`."""
        replies, answers = (
            [prediction.reply for prediction in predictions],
            [[_answer(example)] for example in examples],
        )
        return (
            rouge(replies, answers, "unicode") if self.scored_by == "rouge" else bleu_and_chrf(replies, answers, "13a")
        )


def _without_answer(example: Chat | Passage) -> Chat | Passage:
    """The example without its last answer."""
    if is_prompt(example):
        return example
    if isinstance(example, Passage):
        return replace(example, completion=None)
    return replace(example, messages=example.messages[:-1])


def _answer(example: Chat | Passage) -> str:
    return example.completion or "" if isinstance(example, Passage) else example.messages[-1]["content"]
