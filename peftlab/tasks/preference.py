"""The task preference: pairs of a better and a worse answer, for direct preference optimization (DPO).

The reward of an answer in DPO (Rafailov et al. 2023, arXiv:2305.18290) is beta · (log p(answer) - log p_ref(answer)).
p_ref is the probability by the base with the adapter disabled, or by the adapter that the run started from.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.tasks.causal_lm import CausalLmTask
from peftlab.tasks.chat.examples import Chat, Passage, Reply
from peftlab.tasks.chat.messages import (
    check_chat_columns,
    check_plain_columns,
    instruction_messages,
    messages_column,
)
from peftlab.tasks.chat.template import ASSISTANT, Message
from peftlab.tasks.inputs.columns import chosen_form, json_cell, optional_text_column, text_column
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.text import PlainTextInputs, TextInputs
from peftlab.tasks.outputs import Outputs, ReferencedOutputs
from peftlab.tasks.task import Example, Metric, ModelContext, Prediction, Scores, Targets

if TYPE_CHECKING:
    import torch

ANSWERS = ("chosen", "rejected")
FORMS = tuple((*asked, *ANSWERS) for asked in (("prompt",), ("instruction",), ("messages",), ("conversations",), ()))
MESSAGES_IN_A_CELL = re.compile(r'\s*\[?\s*\{\s*"(role|content|from|value)"')
ChatOrPassage = Chat | Passage
NOTHING = Passage("")
SAME_ANSWERS = "its answers do not differ within its first tokens"


@dataclass(frozen=True)
class Pair(Example):
    """Two answers to the same prompt, each as a full chat or passage; the loss is on the answers only."""

    chosen: ChatOrPassage = NOTHING
    rejected: ChatOrPassage = NOTHING

    @property
    def answers_in_order(self) -> tuple[ChatOrPassage, ChatOrPassage]:
        """The better answer, then the worse one, each with the location of the row."""
        return replace(self.chosen, where=self.where), replace(self.rejected, where=self.where)


@dataclass(frozen=True)
class Answer(Feature):
    """One answer of a pair, or a window of it; `reference` is its loss by the reference model (nats), None
    until it is computed."""

    part: str = "chosen"
    reference: float | None = None


class AnswerInputs(PlainTextInputs):
    """Chats and passages with two answers."""

    feature_class = Answer


@dataclass(frozen=True)
class Preference(Prediction):
    """The reward of each of two answers."""

    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        """The reward of the better answer minus that of the worse one."""
        return self.chosen - self.rejected

    def as_dict(self) -> dict[str, Any]:
        """`text`, `chosen_reward`, `rejected_reward` and `right`: whether the chosen one is preferred."""
        rewards = {"chosen_reward": round(self.chosen, 4), "rejected_reward": round(self.rejected, 4)}
        return {"text": self.text, **rewards, "right": self.margin > 0}


class PreferenceTask(CausalLmTask):
    """Rows have `chosen` and `rejected`, and before them `prompt`, `instruction` (and `input`) or `messages`.

    Formatting and generation are as for `causal-lm`. The adapter is trained by TRL's DPO.
    """

    type = "preference"
    inputs_class = AnswerInputs

    def __init__(
        self, *, beta: float = 0.1, loss_type: str = "sigmoid", label_smoothing: float = 0.0, **written: Any
    ) -> None:
        super().__init__(**written)
        self.beta, self.loss_type, self.label_smoothing = beta, loss_type, label_smoothing
        self.metric = Metric("reward_accuracy", self.score)
        self.targets = Targets("answers", self.count, self.lost, empty_reason=SAME_ANSWERS)

    @property
    def outputs(self) -> Outputs:
        """Generated replies; the rewards of labelled answers need the reference model's outputs."""
        return ReferencedOutputs(self._generation(), self.learned_stop_strings, self.attach_reference)

    @property
    def options(self) -> dict[str, Any]:
        """The options of `causal-lm`, and beta, loss type and label smoothing."""
        learning = {"beta": self.beta, "loss_type": self.loss_type, "label_smoothing": self.label_smoothing}
        return {**super().options, **learning}

    def read(self, row: Row) -> Pair:  # type: ignore[override]
        """Read a row with both answers. Raises RowError with what was expected."""
        form = chosen_form(row, *FORMS)
        check_chat_columns(row)
        if form[0] == "prompt" and all(_is_plain(row, name) for name in form):
            check_plain_columns(row)
            prompt = optional_text_column(row, "prompt")
            answers_in_order: list[Any] = [Passage(prompt, completion=text_column(row, name)) for name in ANSWERS]
        else:
            asked, *answers = _split_chats(
                _prompt_messages(row, form[0]), *(_answer_messages(row, name) for name in ANSWERS)
            )
            answers_in_order = [self._side(row, asked, answer) for answer in answers]
        return Pair(answers_in_order[0].text, row.where, chosen=answers_in_order[0], rejected=answers_in_order[1])

    def _side(self, row: Row, asked: Sequence[Message], answer: Sequence[Message]) -> Chat:
        answers = sum(message["role"] == ASSISTANT for message in answer)
        chat = self._chat(row, [*asked, *answer])
        return replace(chat, text=asked[-1]["content"], where="", answers_in_loss=answers)

    def fit_labels(self, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector) -> None:
        """See `CausalLmTask.fit_labels`."""
        super().fit_labels({"train": [pair.chosen for pair in examples["train"]]}, errors)

    def bind_to_base(
        self, context: ModelContext, examples: Mapping[str, Sequence[Any]], errors: ErrorCollector
    ) -> None:
        """See `CausalLmTask.bind_to_base`."""
        super().bind_to_base(context, {split: _flatten_pairs(pairs) for split, pairs in examples.items()}, errors)

    def encode(
        self, examples: Sequence[Any], inputs: TextInputs, max_length: int, *, training: bool
    ) -> list[list[Feature]]:
        """As `CausalLmTask.encode`, the better answer first; for training, a pair with equal answers has no
        features."""
        encoded = iter(super().encode(_flatten_pairs(examples), inputs, max_length, training=training))
        return [
            _pair_features(next(encoded), next(encoded), training) if isinstance(example, Pair) else next(encoded)
            for example in examples
        ]

    def count(self, example: Any) -> int:
        """The number of answers, chosen and rejected ones."""
        return sum(map(super().count, _flatten_pairs([example])))

    def lost(self, example: Any, features: Sequence[Any]) -> int:
        """The number of answers whose end is truncated."""
        answers_in_order = zip(example.answers_in_order, ANSWERS, strict=True)
        return sum(super(PreferenceTask, self).lost(side, _of(part, features)) for side, part in answers_in_order)

    def attach_reference(self, feature: Any, output: "torch.Tensor") -> Answer:
        """Add the loss of the answer's tokens by the reference model."""
        return replace(feature, reference=_sum_nll(output))

    def decode(  # type: ignore[override]
        self, example: Any, features: Sequence[Any], logits: Sequence[Any]
    ) -> Preference | Reply:
        """For a prompt, the reply; for a pair, the rewards of both answers, summed over windows."""
        if not isinstance(example, Pair):
            return super().decode(example, features, logits)  # type: ignore[return-value]
        rewards = dict.fromkeys(ANSWERS, 0.0)
        for feature, output in zip(features, logits, strict=True):
            rewards[feature.part] += self.beta * (feature.reference - _sum_nll(output))
        return Preference(example.text, **rewards)

    def score(self, examples: Sequence[Any], predictions: Sequence[Any]) -> Scores:
        """Fraction of pairs whose better answer has the larger reward, mean rewards, and the DPO loss: the mean of
        -log σ(margin), for any `loss_type`."""
        number = len(predictions) or 1
        chosen, rejected = (sum(getattr(prediction, part) for prediction in predictions) / number for part in ANSWERS)
        return Scores(
            {
                "reward_accuracy": sum(prediction.margin > 0 for prediction in predictions) / number,
                "reward_margin": chosen - rejected,
                "chosen_reward": chosen,
                "rejected_reward": rejected,
                "loss": sum(_negative_log_sigmoid(prediction.margin) for prediction in predictions) / number,
            }
        )


def _is_plain(row: Row, name: str) -> bool:
    """Whether a column has plain text, not messages (also not as JSON in a cell)."""
    value = row.fields[name]
    return not isinstance(value, list | dict) and not MESSAGES_IN_A_CELL.match(str(value))


def _prompt_messages(row: Row, column: str) -> list[Message]:
    """The messages of the prompt; empty if there is no column for it."""
    if column == "instruction":
        return instruction_messages(row)
    if column == "prompt" and _is_plain(row, column):
        return [{"role": "user", "content": text_column(row, column)}]
    return [] if column in ANSWERS else messages_column(row, column)


def _answer_messages(row: Row, name: str) -> list[Message]:
    """The messages of an answer: a string, a message or a list of messages."""
    if _is_plain(row, name):
        return [{"role": ASSISTANT, "content": text_column(row, name)}]
    value = json_cell(row.fields[name], name)
    return messages_column(Row({name: [value] if isinstance(value, dict) else value}, row.where), name)


def _split_chats(
    asked: list[Message], chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Split into prompt and both answers; `chosen` and `rejected` are full chats if their first message is no
    answer."""
    if chosen[0]["role"] != ASSISTANT and rejected[0]["role"] != ASSISTANT:
        shared = [one for one, _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))]
        while shared and shared[-1]["role"] == ASSISTANT:  # the same answer, or the beginning of both
            shared.pop()
        if [message for message in asked if message not in shared]:
            raise RowError("expected chosen and rejected to be answers, or full chats that begin with the prompt")
        asked, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    for name, said in zip(ANSWERS, (chosen, rejected), strict=True):
        if not said or any(said[place]["role"] != ASSISTANT for place in (0, -1)):
            raise RowError(f"expected {name} to begin and end with a message of the {ASSISTANT} after the prompt")
    if not asked:
        raise RowError("expected a prompt before the answers, as prompt, instruction or messages")
    if asked[-1]["role"] == ASSISTANT:
        raise RowError(f"expected the last message of the prompt not to have the role {ASSISTANT}")
    return asked, chosen, rejected


def _flatten_pairs(examples: Sequence[Any]) -> list[ChatOrPassage]:
    return [side for one in examples for side in (one.answers_in_order if isinstance(one, Pair) else (one,))]


def _pair_features(chosen: Sequence[Feature], rejected: Sequence[Feature], training: bool) -> list[Feature]:
    answers = {"chosen": chosen, "rejected": rejected}
    if training and (not chosen or not rejected or chosen[0].inputs == rejected[0].inputs):
        return []
    return [Answer(**vars(feature), part=part) for part, features in answers.items() for feature in features]


def _of(part: str, features: Sequence[Answer]) -> list[Answer]:
    return [feature for feature in features if feature.part == part]


def _sum_nll(output: "torch.Tensor") -> float:
    """The sum of the losses of the answer's tokens (nats)."""
    return float(output[:, 0].double().sum())


def _negative_log_sigmoid(margin: float) -> float:
    return math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0)
