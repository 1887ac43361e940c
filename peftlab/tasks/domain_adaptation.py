"""Continued pretraining on plain text of a domain or task (DAPT and TAPT, Gururangan et al. 2020, arXiv:2004.10964).

The base's own head learns, as it did before, to find masked tokens or to foresee the next one; it stays as it is, and
the adapter holds what the layers below it learnt. Two tasks in one: the objective decides.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.tasks.causal_lm import NOTHING_IN_LOSS, CausalLmTask, Passage
from peftlab.tasks.heads import MaskedLanguageModelHead
from peftlab.tasks.inputs.columns import chosen_form, optional_text_column, quoted, text_column
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.masking import TokenMasker
from peftlab.tasks.inputs.text import PlainTextInputs, TextInputs
from peftlab.tasks.inputs.text_pair import inputs_of, numbers_of_windows
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
LIKELIEST = 5  # fillings told of each mask, as Transformers' fill-mask pipeline does


def domain_adaptation(
    *,
    labels: list[str] | None = None,
    objective: str | None = None,
    mask_probability: float | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Task:
    """The task of an objective; without one, a task that only reads rows, which are the same for both."""
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
    """A row with `text`, all of which is learnt. Raises RowError."""
    chosen_form(row, ("text",))
    return Passage("", row.where, completion=text_column(row, "text"))


class DomainCausalLmTask(CausalLmTask):
    """Each next token of a text is learnt, and the end of it; asked, a text goes on."""

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
        """The objective, and how texts go on."""
        return {"objective": FORESEEN, "generation": self.generation}

    def read(self, row: Row) -> Passage:
        """See `read_text`."""
        return read_text(row)

    def read_input(self, row: Row) -> Passage:
        """`text`, which is to go on."""
        chosen_form(row, ("text",))
        return Passage(optional_text_column(row, "text"), row.where)

    def bind_to_base(
        self, context: ModelContext, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector
    ) -> None:
        """See `Task.bind_to_base`; where the recipe does not say how long replies are, they leave half of an input."""
        if not self._asked_for:
            self.generation["max_new_tokens"] = min(self.generation["max_new_tokens"], context.max_length // 2)
        self._check_prompt_length(context.max_length, errors)

    def stop_strings(self, inputs: Any) -> list[str]:
        """The tokenizer's own end, and the recipe's `stop_strings`."""
        tokenizer = inputs.tokenizer
        stop_strings = [tokenizer.eos_token or "", *self.generation.get("stop_strings", ())]
        return list(dict.fromkeys(ending for ending in stop_strings if ending))


@dataclass(frozen=True)
class MaskCandidate:
    """A token that may stand in the place of a mask, and how probable it is."""

    token: str
    score: float


@dataclass(frozen=True)
class FilledMasks(Prediction):
    """The likeliest tokens for each mask of a text, in order."""

    masks: tuple[tuple[MaskCandidate, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """`text`, and `masks`, a list of {token, score} for each."""
        prediction = [[{"token": one.token, "score": round(one.score, 6)} for one in mask] for mask in self.masks]
        return {"text": self.text, "masks": prediction}


@dataclass(frozen=True)
class MaskedPrompt(Feature):
    """A window of a text with masks; `positions` are those masks that it decides, with their numbers.

    `written` turns a token into text.
    """

    written: Callable[[int], str] = str


class DomainMaskedLmTask(Task):
    """Masked tokens of a text are found; asked, those in the place of the tokenizer's mask token."""

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
        """The objective, and how much is masked in training."""
        return {"objective": MASKED, "mask_probability": self.mask_probability}

    def example_arguments(self) -> str:
        """A text with a mask, for `peftlab predict`."""
        return f'"The {self.state["mask token"]} was here."'

    def read(self, row: Row) -> Passage:
        """See `read_text`."""
        return read_text(row)

    def read_input(self, row: Row) -> Passage:
        """`text` with masks in it. Raises RowError with what was expected."""
        chosen_form(row, ("text",))
        text, mask = optional_text_column(row, "text"), self.state["mask token"]
        if mask not in text:
            raise RowError(f"expected text to hold {mask} where a word is to be found, found {quoted(text)}")
        return Passage(text, row.where)

    def fit_labels(self, examples: Mapping[str, Sequence[Passage]], errors: ErrorCollector) -> None:
        """There is nothing to fix."""

    def bind_to_base(
        self, context: ModelContext, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector
    ) -> None:
        """Take the tokenizer's mask token; see `Task.bind_to_base`."""
        if context.inputs.tokenizer.mask_token is None:
            message = "the tokenizer of this base has no mask token."
            errors.add(message, key="task.objective", hint="Take a base that was pretrained with masks.")
        self.state["mask token"] = context.inputs.tokenizer.mask_token

    def encode(
        self, examples: Sequence[Passage], inputs: TextInputs, max_length: int, *, training: bool
    ) -> list[list[Feature]]:
        """See `Task.encode`.

        All of a text is there, in pieces. To be scored, its masks hang on its tokens alone, so that they are the same
        in every evaluation. What only asks goes through in windows that overlap by half.
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
        """Other masks; see `Task.dynamic_masking`."""
        tokenizer = inputs.tokenizer
        return TokenMasker(tokenizer, self.mask_probability).resample

    def count(self, example: Passage) -> int:
        """One text."""
        return 1

    def decode(self, example: Passage, features: Sequence[Feature], logits: Sequence["torch.Tensor"]) -> Prediction:
        """Asked, what may stand in the place of each mask; or else how well masked tokens were found."""
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
    """Of one token's outcome."""
    probabilities, tokens = output.view(2, -1).tolist()
    for seed, token in zip(probabilities, tokens, strict=True):
        yield MaskCandidate(feature.written(int(token)), seed)


def _chunks(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Iterator[list[dict[str, list[int]]]]:
    """The inputs of each text, one piece after the other."""
    if not texts:
        return
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_length, return_overflowing_tokens=True, verbose=False
    )
    for numbers in numbers_of_windows(encoded, len(texts)):
        yield [inputs_of(encoded, i) for i in numbers]


def _windows(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Iterator[list[Feature]]:
    """The windows of each text in which a mask is deepest, with most before and after it."""
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
    """Those of a text's windows, each with its offsets, that decide a mask, known by where it stands in the text."""
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
