"""The span of a context that answers a question, or that there is none (Rajpurkar et al. 2016, 2018).

A long context is read in windows that share `doc_stride` tokens. The answer is the best valid span over all windows:
start and end inside the context, in order, at most `max_answer_length` tokens apart. There is none where the null score
(the first token as start and end, least over the windows) beats that span by more than a threshold, which the
validation split sets. Scores are those of SQuAD's official script, as shares of 1.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.imports import torch
from peftlab.tasks.heads import SpanHead
from peftlab.tasks.inputs.columns import chosen_form, json_cell, optional_text_column, quoted, text_column
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.offsets import correct_answers
from peftlab.tasks.inputs.question_context import QuestionContextInputs, Window, truncate_texts
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.inputs.text_pair import fill_empty, inputs_of, numbers_of_windows
from peftlab.tasks.metrics.squad import best_threshold, exact_match, f1
from peftlab.tasks.task import Example, Metric, Prediction, Scores, Targets, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALWAYS = None  # as the null threshold: every question has an answer
FARTHEST = 1e4  # the gap, in logits, where there is no span at all


@dataclass(frozen=True)
class Question(Example):
    """A question about `text`, the context, and every accepted answer as (start, end); none if it has no answer."""

    question: str = ""
    answers: tuple[tuple[int, int], ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The question and the context."""
        return self.question, self.text

    @property
    def answer_texts(self) -> list[str]:
        """The accepted answers, in words."""
        return [self.text[start:end] for start, end in self.answers]


@dataclass(frozen=True)
class AnswerPrediction(Prediction):
    """The best span of the context, and whether it is given as the answer.

    `gap` is how far the null score lies above the span's, in logits; `score` the probability of the span against null.
    """

    question: str
    start: int
    end: int
    score: float
    gap: float
    given: bool

    @property
    def answer(self) -> str:
        """The answer in words, empty if there is none."""
        return self.text[self.start : self.end] if self.given else ""

    def as_dict(self) -> dict[str, Any]:
        """`question`, `context`, `answer` (null if there is none), `start`, `end` and `score`."""
        asked = {"question": self.question, "context": self.text}
        if not self.given:
            return {**asked, "answer": None, "score": round(1 - self.score, 4)}
        span = {"answer": self.answer, "start": self.start, "end": self.end}
        return {**asked, **span, "score": round(self.score, 4)}


class QuestionAnsweringTask(Task):
    """Rows have `question`, `context` and `answers` as SQuAD has them, or `answer` (and `answer_start`)."""

    type = "question-answering"
    inputs_class = QuestionContextInputs

    def __init__(
        self,
        *,
        labels: list[str] | None = None,
        doc_stride: int = 128,
        max_answer_length: int = 30,
        token_types: bool = True,
    ) -> None:
        super().__init__(labels=labels)
        self.doc_stride = doc_stride
        self.max_answer_length = max_answer_length
        self.token_types = token_types  # False for what PEFT's class trained, see `SpanHead`
        self.state = {"null_threshold": 0.0}
        self.metric = Metric("f1", self.score, calibrate=self.calibrate)
        self.targets = Targets("answers", self.count, self.lost)

    @property
    def options(self) -> dict[str, Any]:
        """What prediction depends on."""
        without = {} if self.token_types else {"token_types": False}
        return {"doc_stride": self.doc_stride, "max_answer_length": self.max_answer_length, **without}

    @property
    def head(self) -> SpanHead:
        """Two outputs per token."""
        return SpanHead()

    def output_help(self) -> str:
        """How to tell that there is no answer."""
        threshold = self.state["null_threshold"]
        if threshold is ALWAYS:
            return "Every question has an answer: the best span of the context."
        return (
            "A question has no answer where the first token's start and end logits together exceed those of the best "
            f"span of the context by more than {threshold:.4g}."
        )

    def read(self, row: Row) -> Question:
        """A row → a question with its answers. Raises RowError with what was expected."""
        form = chosen_form(row, ("question", "context", "answers"), ("question", "context", "answer"))
        question, context = (text_column(row, name) for name in form[:2])
        if form[2] == "answers":
            answers = _answer_list(json_cell(row.fields["answers"], "answers"))
        else:
            answers = _single_answer(row.fields)
        answers, warnings = correct_answers(answers, context)
        spans = dict.fromkeys(_locate_answer(text, start, context) for text, start in answers)
        return Question(context, row.where, 0, warnings, question=question, answers=tuple(spans))

    def read_input(self, row: Row) -> Question:
        """A question and its context."""
        chosen_form(row, ("question", "context"))
        return Question(optional_text_column(row, "context"), row.where, question=optional_text_column(row, "question"))

    def fit_labels(self, examples: Mapping[str, Sequence[Question]], errors: ErrorCollector) -> None:
        """Whether there are questions without an answer at all."""
        answered = [bool(example.answers) for example in examples["train"]]
        if answered and not any(answered):
            errors.add("no training row has an answer.", key="data.train")
        if answered and all(answered):
            self.state = {"null_threshold": ALWAYS}

    def encode(
        self, examples: Sequence[Question], inputs: TextInputs, max_length: int, *, training: bool
    ) -> list[list[Feature]]:
        """Every window of each context, for training as well; a question longer than half the room is cut."""
        tokenizer = inputs.tokenizer
        budget = max_length - tokenizer.num_special_tokens_to_add(pair=True)
        asked = truncate_texts([example.question for example in examples], tokenizer, budget // 2)
        strides = [min(self.doc_stride, (budget - tokens) // 2) for _, tokens in asked]
        made: list[list[Feature]] = [[] for _ in examples]
        for stride in set(strides):  # one call of the tokenizer takes one stride
            chosen = [i for i, other in enumerate(strides) if other == stride]
            pairs = [(asked[i][0], examples[i]) for i in chosen]
            for i, windows in zip(chosen, self._windows(pairs, stride, tokenizer, max_length), strict=True):
                made[i] = windows
        return made

    def _windows(
        self,
        asked: Sequence[tuple[str, Question]],
        stride: int,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
    ) -> list[list[Feature]]:
        """The windows of each question, as it goes in, with its context."""
        encoded = tokenizer(
            [question for question, _ in asked],
            [example.text for _, example in asked],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [
            [self._window(example, encoded, i, tokenizer, question != example.question) for i in numbers]
            for (question, example), numbers in zip(asked, numbers_of_windows(encoded, len(asked)), strict=True)
        ]

    def _window(
        self, example: Question, encoded: Any, i: int, tokenizer: "PreTrainedTokenizerBase", truncated: bool
    ) -> Window:
        inputs = inputs_of(encoded, i)
        if not self.token_types and "token_type_ids" in inputs:
            inputs["token_type_ids"] = [0] * len(inputs["input_ids"])  # what a model takes where it is given none
        in_context = [part == 1 for part in encoded.sequence_ids(i)]
        offsets = tuple(
            _strip_span(span, example.text) if inside else None
            for inside, span in zip(in_context, encoded["offset_mapping"][i], strict=True)
        )
        inputs, offsets = fill_empty(inputs, tokenizer), offsets or (None,)
        ids = inputs["input_ids"]
        null = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        positions = _answer_tokens(example.answers[0], offsets) if example.answers else None
        return Window(inputs, positions or (null, null), truncated=truncated, offsets=offsets, null=null)

    def count(self, example: Question) -> int:
        """One, if it has an answer."""
        return int(bool(example.answers))

    def lost(self, example: Question, features: Sequence[Feature]) -> int:
        """1 if no window contains the full answer, else 0."""
        found = any(isinstance(window, Window) and window.labels != (window.null,) * 2 for window in features)
        return int(bool(example.answers) and not found)

    def decode(self, example: Question, features: Sequence[Any], logits: Sequence["torch.Tensor"]) -> AnswerPrediction:
        """The best valid span over all windows, and whether it beats the null score."""
        windows = list(zip(features, logits, strict=True))
        null = min(float(output[window.null].sum()) for window, output in windows)
        best, start, end = max(self._best_span(window, output.float()) for window, output in windows)
        gap = min(null - best, FARTHEST)
        return self._with_decision(
            AnswerPrediction(example.text, example.question, start, end, _sigmoid(-gap), gap, False)
        )

    def _best_span(self, window: Window, scores: "torch.Tensor") -> tuple[float, int, int]:
        """The largest sum of a start and an end logit inside the context, and its (start, end) in characters."""
        allowed = torch.tensor([offset is not None for offset in window.offsets])
        masked = scores.masked_fill(~allowed[:, None], float("-inf"))
        pairs = masked[:, None, 0] + masked[None, :, 1]  # (tokens as start, tokens as end)
        in_order = torch.ones_like(pairs, dtype=torch.bool).triu().tril(self.max_answer_length - 1)
        pairs = pairs.masked_fill(~in_order, float("-inf"))
        first, last = divmod(int(pairs.argmax()), pairs.shape[1])
        opening, closing = window.offsets[first], window.offsets[last]
        if opening is None or closing is None:  # a window without any context
            return float("-inf"), 0, 0
        return float(pairs[first, last]), opening[0], closing[1]

    def _with_decision(self, answer: AnswerPrediction) -> AnswerPrediction:
        threshold = self.state["null_threshold"]
        found = answer.end > answer.start
        return replace(answer, given=found and (threshold is ALWAYS or answer.gap <= threshold))

    def calibrate(
        self, examples: Sequence[Question], predictions: Sequence[AnswerPrediction]
    ) -> Sequence[AnswerPrediction]:
        """Set the null threshold where F1 is best, as SQuAD's `find_best_thresh` does."""
        if self.state["null_threshold"] is not ALWAYS and any(not example.answers for example in examples):
            gains = [_gain(example, prediction) for example, prediction in zip(examples, predictions, strict=True)]
            self.state["null_threshold"] = best_threshold([prediction.gap for prediction in predictions], gains)
        return [self._with_decision(prediction) for prediction in predictions]

    def score(self, examples: Sequence[Question], predictions: Sequence[AnswerPrediction]) -> Scores:
        """Exact match and F1, over all and by whether there is an answer."""
        scored = [
            (
                bool(example.answers),
                exact_match(answer.answer, example.answer_texts),
                f1(answer.answer, example.answer_texts),
            )
            for example, answer in zip(examples, predictions, strict=True)
        ]
        kinds = {"answerable": [row for row in scored if row[0]], "unanswerable": [row for row in scored if not row[0]]}
        rows = {kind: {**_means(found), "support": len(found)} for kind, found in kinds.items() if found}
        return Scores(_means(scored), rows)


def _gain(example: Question, prediction: AnswerPrediction) -> float:
    """What F1 wins by giving the best span instead of no answer."""
    words = prediction.text[prediction.start : prediction.end]
    return f1(words, example.answer_texts) - f1("", example.answer_texts)


def _means(scored: Sequence[tuple[bool, float, float]]) -> dict[str, float]:
    if not scored:
        return {"exact": 0.0, "f1": 0.0}
    return {"exact": fmean(row[1] for row in scored), "f1": fmean(row[2] for row in scored)}


def _answer_list(value: Any) -> list[tuple[Any, Any]]:
    """SQuAD's {text: […], answer_start: […]}, or a list of {text, answer_start}."""
    match value:
        case {"text": list(texts), "answer_start": list(starts)} if len(texts) == len(starts):
            return list(zip(texts, starts, strict=True))
        case list() if all(isinstance(item, dict) and {"text", "answer_start"} <= item.keys() for item in value):
            return [(item["text"], item["answer_start"]) for item in value]
    raise RowError(f"expected answers as a list of {{text, answer_start}}, found {quoted(value)}")


def _single_answer(fields: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    answer, start = fields["answer"], fields.get("answer_start")
    if answer is None or answer == "":
        return []
    if isinstance(start, str):  # a table's cell
        start = int(start) if start.strip().isdecimal() else start.strip() or None
    return [(answer, start)]


def _locate_answer(text: Any, start: Any, context: str) -> tuple[int, int]:
    """(start, end) of an answer in its context; without `start`, its only occurrence."""
    if not isinstance(text, str) or not text.strip():
        raise RowError(f"expected an answer to hold some text, found {quoted(text)}")
    places = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
    found = places[0] if start is None and len(places) == 1 else start
    if isinstance(found, int) and not isinstance(found, bool) and found in places:
        return found + len(text) - len(text.lstrip()), found + len(text.rstrip())
    where = f"it occurs at {', '.join(map(str, places[:5]))}" if places else "it does not occur there"
    if start is None:
        raise RowError(f"expected answer_start, the place of '{text}' in the context; {where}")
    raise RowError(f"expected '{text}' at character {start!r} of the context (0 to {len(context)}); {where}")


def _strip_span(span: tuple[int, int], text: str) -> tuple[int, int] | None:
    """A token's place without the blank that byte-level tokens begin with; None if nothing else is in it."""
    words = text[slice(*span)]
    start, end = span[0] + len(words) - len(words.lstrip()), span[1] - len(words) + len(words.rstrip())
    return (start, end) if end > start else None


def _answer_tokens(answer: tuple[int, int], offsets: Sequence[tuple[int, int] | None]) -> tuple[int, int] | None:
    """The first and last token of the answer, if the window holds all of it."""
    spans = [(i, span) for i, span in enumerate(offsets) if span]
    inside = [i for i, (start, end) in spans if start < answer[1] and end > answer[0]]
    if not inside or spans[0][1][0] > answer[0] or spans[-1][1][1] < answer[1]:
        return None
    return inside[0], inside[-1]


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))


def without_token_types(
    names: Sequence[str], multi_label: bool, threshold: float | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of an imported adapter: PEFT's class for QUESTION_ANS drops token_type_ids."""
    return {"token_types": False} if config.get("task_type") == "QUESTION_ANS" else {}
