"""A number for a text or a pair of texts.

Targets are standardized by the training rows' mean and deviation, so that one learning rate fits every unit;
predictions come back in the user's unit.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.errors import ErrorCollector
from peftlab.imports import scipy_stats
from peftlab.tasks.heads import RegressionHead
from peftlab.tasks.inputs.columns import chosen_form, number_column, text_column
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.inputs.text_pair import (
    TextPair,
    TextPairPrediction,
    encode_sequences,
    find_pairs,
    read_pair,
    second_text,
)
from peftlab.tasks.task import Metric, Scores, Targets, Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ScoredText(TextPair):
    """A text or a pair, and its number."""

    label: float = 0.0


@dataclass(frozen=True)
class NumberPrediction(TextPairPrediction):
    """The number given to a text, in the unit of the training rows."""

    value: float

    def as_dict(self) -> dict[str, Any]:
        """`text` (and `text_pair`), and `value`."""
        return {**self.input_fields, "value": round(self.value, 4)}


class RegressionTask(Task):
    """Rows have `text` (and `text_pair`), and `label`, a number."""

    type = "regression"

    @property
    def head(self) -> RegressionHead:
        """One output, in standard units."""
        return RegressionHead(self.loss_name, pooling=self.state.get("pooling"))

    def output_help(self) -> str:
        """How to read the output, which is in standard units."""
        return f"In the unit of the data, a value is logit × {self.state['deviation']:.6g} + {self.state['mean']:.6g}."

    def __init__(self, *, labels: list[str] | None = None, loss: str = "mse") -> None:
        super().__init__(labels=labels)
        self.loss_name = loss
        self.metric = Metric("pearson", self.score)
        self.targets = Targets("numbers", self.count)
        self.state = {"mean": 0.0, "deviation": 1.0}

    def read(self, row: Row) -> ScoredText:
        """A row → texts and a number. Raises RowError with what was expected."""
        chosen_form(row, ("text", "label"))
        pair = second_text(row, text_column, pairs=self.state.get("pairs", False))
        return ScoredText(text_column(row, "text"), row.where, text_pair=pair, label=number_column(row, "label"))

    def read_input(self, row: Row) -> TextPair:
        """Read a text or a pair of texts."""
        return read_pair(row, pairs=self.state.get("pairs", False))

    def fit_labels(self, examples: Mapping[str, Sequence[ScoredText]], errors: ErrorCollector) -> None:
        """Mean, deviation and range of the training rows' numbers."""
        numbers = [example.label for example in examples["train"]]
        if not numbers:
            return
        deviation = statistics.pstdev(numbers)
        if deviation == 0:
            errors.add(f"every training row says {numbers[0]:g}; there is nothing to learn.", key="data.train")
        self.state |= {
            "mean": statistics.fmean(numbers),
            "deviation": deviation or 1.0,
            "least": min(numbers),
            "most": max(numbers),
            **find_pairs(examples, errors),
        }

    def encode(
        self, examples: Sequence[TextPair], inputs: TextInputs, max_length: int, *, training: bool
    ) -> list[list[Feature]]:
        """See `Task.encode`; labels are standardized."""
        mean, deviation = self.state["mean"], self.state["deviation"]
        numbers = [(row.label - mean) / deviation if isinstance(row, ScoredText) else None for row in examples]
        texts = [(row.text, row.text_pair) for row in examples]
        return encode_sequences(texts, numbers, inputs.tokenizer, max_length, training=training)

    def count(self, example: ScoredText) -> int:
        """One number a row."""
        return 1

    def decode(
        self, example: TextPair, features: Sequence[Feature], logits: Sequence["torch.Tensor"]
    ) -> NumberPrediction:
        """The mean over the windows, in the user's unit."""
        mean = sum(float(output.float()[0]) for output in logits) / len(logits)
        return NumberPrediction(example.text, example.text_pair, mean * self.state["deviation"] + self.state["mean"])

    def score(self, examples: Sequence[ScoredText], predictions: Sequence[NumberPrediction]) -> Scores:
        """Pearson's and Spearman's correlation (0 where all predictions are alike), RMSE and mean absolute error."""
        gold, prediction = [row.label for row in examples], [row.value for row in predictions]
        if len(set(gold)) < 2 or len(set(prediction)) < 2:
            pearson = spearman = 0.0  # undefined without spread
        else:
            pearson, spearman = (
                float(scipy_stats.pearsonr(gold, prediction)[0]),
                float(scipy_stats.spearmanr(gold, prediction)[0]),
            )
        errors = [a - b for a, b in zip(gold, prediction, strict=True)] or [0.0]
        rmse = statistics.fmean(error * error for error in errors) ** 0.5
        mae = statistics.fmean(map(abs, errors))
        return Scores({"pearson": pearson, "spearman": spearman, "rmse": rmse, "mae": mae})
