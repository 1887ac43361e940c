"""Continued pretraining on plain text of a domain or task (DAPT and TAPT, Gururangan et al. 2020, arXiv:2004.10964).

The base's own head predicts masked tokens or next tokens, as in pretraining. The head is not trained; the adapter
changes the layers below it. There are two task classes, one for each objective.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.tasks.causal_lm import NOTHING_IN_LOSS, CausalLmTask
from peftlab.tasks.chat.examples import Passage
from peftlab.tasks.inputs.columns import chosen_form, optional_text_column, quoted, text_column
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.masking import TokenMasker
from peftlab.tasks.inputs.text import PlainTextInputs, TextInputs
from peftlab.tasks.inputs.text_pair import inputs_of, numbers_of_windows
from peftlab.tasks.language_model_heads import MaskedLanguageModelHead
from peftlab.tasks.metrics.perplexity import TokenLoss, perplexity_scores, sum_token_losses
from peftlab.tasks.outputs import GeneratedOutputs, Outputs
from peftlab.tasks.task import FeatureSampler, Metric, ModelContext, Prediction, Scores, Targets, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

TYPE = "domain-adaptation"
MASKED, FORESEEN = "masked-lm", "causal-lm"
MASK_PROBABILITY = 0.15
NOTHING_TO_MASK = "nothing in it that can be masked"
LIKELIEST = 5  # predictions for each mask, as Transformers' fill-mask pipeline does


def domain_adaptation(
    *,
    labels: list[str] | None = None,
    objective: str | None = None,
    mask_probability: float | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Task:
    """Make the task of an objective. Without objective, the task only reads rows, which are the same for both."""
    if objective == MASKED:
        return DomainMaskedLmTask(labels=labels, mask_probability=mask_probability)
    return DomainCausalLmTask(labels=labels, generation=generation)


def example_text(task: Task) -> str:
    """Arguments for a first `peftlab predict`, which depend on the objective."""
    return task.example_arguments() if isinstance(task, DomainMaskedLmTask) else '"Your text"'


def pipeline_tag(task: Task) -> str:
    """The task's name on the Hub, which depends on the objective."""
    return "fill-mask" if isinstance(task, DomainMaskedLmTask) else "text-generation"


def read_text(row: Row) -> Passage:
    """Read a row with `text`. Raises RowError."""
    chosen_form(row, ("text",))
    return Passage("", row.where, completion=text_column(row, "text"))


class DomainCausalLmTask(CausalLmTask):
    """Predict the next tokens of a text and its end; at prediction, continue a text."""

    type = TYPE

    def __init__(self, *, labels: list[str] | None = None, generation: Mapping[str, Any] | None = None) -> None:
        super().__init__(labels=labels, generation=generation)
        self._asked_for = generation is not None
        self.targets = Targets("texts", self.count, self.lost, empty_reason=NOTHING_IN_LOSS)

    @property
    def outputs(self) -> Outputs:
        """Generated texts."""
        return GeneratedOutputs(self._generation())

    def input_columns(self) -> tuple[str, ...]:
        """The text."""
        return ("text",)

    @property
    def options(self) -> dict[str, Any]:
        """The objective, and the settings for generating text."""
        return {"objective": FORESEEN, "generation": self.generation}

    def read(self, row: Row) -> Passage:
        """See `read_text`."""
        return read_text(row)

    def read_input(self, row: Row) -> Passage:
        """Read a `text` to continue."""
        chosen_form(row, ("text",))
        return Passage(optional_text_column(row, "text"), row.where)

    def bind_to_base(
        self, context: ModelContext, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector
    ) -> None:
        """See `Task.bind_to_base`; by default, new tokens are at most half of the maximum length."""
        self.state["end_tokens"] = list(context.end_tokens)
        self._check_ends(examples.get("train", ()), context.inputs.tokenizer, errors)
        if not self._asked_for:
            self.generation["max_new_tokens"] = min(self.generation["max_new_tokens"], context.max_length // 2)
        self._check_prompt_length(context.max_length, errors)

    def stop_strings(self, inputs: Any) -> list[str]:
        """The tokenizer's eos token, and the recipe's `stop_strings`."""
        tokenizer = inputs.tokenizer
        stop_strings = [tokenizer.eos_token or "", *self.generation.get("stop_strings", ())]
        return list(dict.fromkeys(ending for ending in stop_strings if ending))


@dataclass(frozen=True)
class MaskCandidate:
    """A predicted token for a mask, and its probability."""

    token: str
    score: float


@dataclass(frozen=True)
class FilledMasks(Prediction):
    """The most probable tokens for each mask of a text, in order."""

    masks: tuple[tuple[MaskCandidate, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """`text`, and `masks`, a list of {token, score} for each."""
        prediction = [[{"token": one.token, "score": round(one.score, 6)} for one in mask] for mask in self.masks]
        return {"text": self.text, "masks": prediction}


@dataclass(frozen=True)
class MaskedPrompt(Feature):
    """A window of a text with masks; `positions` are the masks that this window predicts, with their numbers.

    `written` turns a token into text.
    """

    written: Callable[[int], str] = str


class DomainMaskedLmTask(Task):
    """Predict masked tokens of a text; at prediction, the tokens for the mask tokens in the input."""

    type = TYPE
    inputs_class = PlainTextInputs

    def __init__(self, *, labels: list[str] | None = None, mask_probability: float | None = None) -> None:
        super().__init__(labels=labels)
        self.mask_probability = mask_probability or MASK_PROBABILITY
        self.state = {"mask token": "[MASK]"}
        self.metric = Metric("perplexity", self.score, greater_is_better=False)
        self.targets = Targets("texts", self.count, empty_reason=NOTHING_TO_MASK, sampler=self.dynamic_masking)

    @property
    def head(self) -> MaskedLanguageModelHead:
        """The base model's own."""
        return MaskedLanguageModelHead(LIKELIEST)

    @property
    def options(self) -> dict[str, Any]:
        """The objective, and the mask probability in training."""
        return {"objective": MASKED, "mask_probability": self.mask_probability}

    def example_arguments(self) -> str:
        """A text with a mask, for `peftlab predict`."""
        return f'"The {self.state["mask token"]} was here."'

    def read(self, row: Row) -> Passage:
        """See `read_text`."""
        return read_text(row)

    def read_input(self, row: Row) -> Passage:
        """Read a `text` with mask tokens. Raises RowError with what was expected."""
        chosen_form(row, ("text",))
        text, mask = optional_text_column(row, "text"), self.state["mask token"]
        if mask not in text:
            raise RowError(f"expected text to contain {mask} for each word to predict, found {quoted(text)}")
        return Passage(text, row.where)

    def fit_labels(self, examples: Mapping[str, Sequence[Passage]], errors: ErrorCollector) -> None:
        """Do nothing: this task has no labels."""

    def bind_to_base(
        self, context: ModelContext, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector
    ) -> None:
        """Store the tokenizer's mask token; see `Task.bind_to_base`."""
        if context.inputs.tokenizer.mask_token is None:
            message = "the tokenizer of this base has no mask token."
            errors.add(message, key="task.objective", hint="Take a base that was pretrained with masks.")
        self.state["mask token"] = context.inputs.tokenizer.mask_token

    def encode(
        self, examples: Sequence[Passage], inputs: TextInputs, max_length: int, *, training: bool
    ) -> list[list[Feature]]:
        """See `Task.encode`.

        Texts are split into chunks. For scoring, the masks depend only on the tokens of the chunk, so that they are the
        same in each evaluation. At prediction, texts are split into windows that overlap by half.
        """
        tokenizer = inputs.tokenizer
        masks = TokenMasker(tokenizer, self.mask_probability if training else MASK_PROBABILITY)
        made: dict[int, list[Feature]] = {}
        for asked in (False, True):
            chosen = [i for i, example in enumerate(examples) if (example.completion is None) == asked]
            texts = [examples[i].completion or examples[i].text for i in chosen]
            if asked:
                made |= zip(chosen, _windows(texts, tokenizer, max_length), strict=True)
            else:
                chunks = _chunks(texts, tokenizer, max_length)
                features = ([masks.masked(piece, str(piece["input_ids"])) for piece in full] for full in chunks)
                made |= zip(chosen, [list(filter(self.head.loss_terms, full)) for full in features], strict=True)
        return [made[i] for i in range(len(examples))]

    def dynamic_masking(self, inputs: TextInputs) -> FeatureSampler | None:
        """Redraw the masks; see `Targets.sampler`."""
        tokenizer = inputs.tokenizer
        return TokenMasker(tokenizer, self.mask_probability).resample

    def count(self, example: Passage) -> int:
        """One text."""
        return 1

    def decode(self, example: Passage, features: Sequence[Feature], logits: Sequence["torch.Tensor"]) -> Prediction:
        """At prediction, the most probable tokens for each mask; for scoring, the token losses."""
        if example.completion is not None:
            return sum_token_losses(example.completion, logits, sum(map(self.head.loss_terms, features)))
        found: dict[int, tuple[MaskCandidate, ...]] = {}
        for feature, output in zip(features, logits, strict=True):
            assert isinstance(feature, MaskedPrompt)
            found |= {number: tuple(_fillings(output[token], feature)) for token, number in feature.positions}
        return FilledMasks(example.text, tuple(found[number] for number in sorted(found)))

    def score(self, examples: Sequence[Passage], predictions: Sequence[TokenLoss]) -> Scores:
        """See `perplexity_scores`."""
        return perplexity_scores(predictions)


def _fillings(output: "torch.Tensor", feature: MaskedPrompt) -> Iterator[MaskCandidate]:
    """The predictions for one mask, from its output."""
    probabilities, tokens = output.view(2, -1).tolist()
    for seed, token in zip(probabilities, tokens, strict=True):
        yield MaskCandidate(feature.written(int(token)), seed)


def _chunks(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Iterator[list[dict[str, list[int]]]]:
    """The inputs of each text, split into chunks."""
    if not texts:
        return
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_length, return_overflowing_tokens=True, verbose=False
    )
    for numbers in numbers_of_windows(encoded, len(texts)):
        yield [inputs_of(encoded, i) for i in numbers]


def _windows(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Iterator[list[Feature]]:
    """For each text, the windows that have the most context around a mask."""
    if not texts:
        return
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_length,
        stride=(max_length - tokenizer.num_special_tokens_to_add()) // 2,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    for numbers in numbers_of_windows(encoded, len(texts)):
        yield list(
            _select_mask_windows([(inputs_of(encoded, i), encoded["offset_mapping"][i]) for i in numbers], tokenizer)
        )


def _select_mask_windows(
    windows: Sequence[tuple[dict[str, list[int]], Sequence[tuple[int, int]]]], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[Feature]:
    """Select for each mask of a text the window with the most context; windows without such a mask are left out."""
    best_windows: dict[int, tuple[int, int, int]] = {}
    for number, (inputs, places) in enumerate(windows):
        tokens = inputs["input_ids"]
        for i, (start, _) in enumerate(places):
            if tokens[i] == tokenizer.mask_token_id:
                depth = min(i, len(tokens) - 1 - i)
                best_windows[start] = max(best_windows.get(start, (-1, 0, 0)), (depth, number, i))
    in_order = [best_windows[start] for start in sorted(best_windows)]
    for number, (inputs, _) in enumerate(windows):
        mine = [(token, place) for place, (_, window, token) in enumerate(in_order) if window == number]
        if mine:
            yield MaskedPrompt(inputs, None, mine, written=lambda token: str(tokenizer.decode([token])))
