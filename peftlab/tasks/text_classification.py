"""One label for a text or a pair of texts, or, with `multi_label`, any number of labels.

A long text is read in overlapping windows whose log probabilities are averaged. Scores are scikit-learn's.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.data.rows import BlankRowError, RowError
from peftlab.errors import ErrorCollector
from peftlab.imports import sklearn_metrics, torch
from peftlab.tasks.heads import ClassificationHead, MultiLabelHead
from peftlab.tasks.inputs.columns import chosen_form, json_cell, quoted, text_column
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
from peftlab.tasks.labels.class_weights import ClassWeights, fit_class_weights
from peftlab.tasks.labels.label_cells import find_separator, split_labels
from peftlab.tasks.labels.label_set import fit_labels_from_examples
from peftlab.tasks.labels.thresholds import fit_thresholds
from peftlab.tasks.metrics.calibration import (
    TEMPERATURE,
    Calibration,
    describe_temperature,
    fit_class_temperature,
    fit_label_temperature,
    measure_calibration,
    temperature_of,
)
from peftlab.tasks.task import Confusion, Metric, Scores, Targets, Task
from peftlab.tasks.windows import mean_log_probabilities, mean_logits

if TYPE_CHECKING:
    pass

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class LabelledText(TextPair):
    """A text or a pair, and its labels: exactly one, unless the task is multi-label."""

    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassPrediction(TextPairPrediction):
    """The labels given to a text, and the probability of each label there is."""

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]

    @property
    def label(self) -> str:
        """The most probable label."""
        return max(self.probabilities, key=lambda label: self.probabilities[label])

    def as_dict(self) -> dict[str, Any]:
        """`text` (and `text_pair`), `labels`, and `scores`, the probabilities, falling."""
        falling = sorted(self.probabilities.items(), key=lambda item: -item[1])
        return {
            **self.input_fields,
            "labels": list(self.labels),
            "scores": {name: round(seed, 4) for name, seed in falling},
        }


class TextClassificationTask(Task):
    """Rows have `text` (and `text_pair`), and `label`, or `labels` with multi_label."""

    type = "text-classification"

    def __init__(
        self,
        *,
        labels: list[str] | None = None,
        multi_label: bool = False,
        threshold: float | str = "auto",
        class_weights: ClassWeights = None,
        label_smoothing: float = 0.0,
        labels_by_number: bool = True,
    ) -> None:
        super().__init__(labels=labels)
        self.labels_by_number = labels_by_number and bool(labels)
        self.separator: str | None = None
        self.multi_label = multi_label
        self.threshold = threshold
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.weights: list[float] | None = None
        self.log_odds: list[float] | None = None
        name = "micro_f1" if multi_label else "accuracy"
        self.metric = Metric(name, self.score, calibrate=self.calibrate, fit_temperature=self.fit_temperature)
        self.targets = Targets("labels", self.count, labels_of=self.labels_of)

    @property
    def head(self) -> ClassificationHead:
        """One output per label."""
        kind = MultiLabelHead if self.multi_label else ClassificationHead
        head = kind(self.labels, self.weights, pooling=self.state.get("pooling"))
        head.initial_bias, head.label_smoothing = self.log_odds, self.label_smoothing
        return head

    def output_help(self) -> str:
        """How to read the head's outputs."""
        temperature, labels = describe_temperature(self.state), zip(self.labels, self.thresholds, strict=True)
        if not self.multi_label:
            return temperature.lstrip()
        least = f"{self.thresholds[0]}"
        if len(set(self.thresholds)) > 1:
            least = f"its minimum: {', '.join(f'{name} {threshold}' for name, threshold in labels)}"
        return f"A label is given where its probability, the sigmoid of its logit, reaches {least}.{temperature}"

    @property
    def options(self) -> dict[str, Any]:
        """What prediction depends on."""
        options = {"multi_label": self.multi_label, "threshold": self.threshold}
        return options | ({"labels_by_number": True} if self.labels_by_number else {})

    def read(self, row: Row) -> LabelledText:
        """A row → texts and labels. Raises RowError with what was expected."""
        label = "labels" if self.multi_label else "label"
        chosen_form(row, ("text", label))
        pair = second_text(row, text_column, pairs=self.state.get("pairs", False))
        value = row.fields[label]
        names = self._label_list(value) if self.multi_label else [self._label(value, "label")]
        return LabelledText(text_column(row, "text"), row.where, text_pair=pair, labels=tuple(dict.fromkeys(names)))

    def read_input(self, row: Row) -> TextPair:
        """Read a text or a pair of texts."""
        return read_pair(row, pairs=self.state.get("pairs", False))

    def _label_list(self, value: Any) -> list[str]:
        """Several labels; a table's cell may hold them as JSON, or separated; see `split_labels`."""
        if isinstance(value, str):
            stripped = value.strip()
            is_json = stripped.startswith("[")
            value = json_cell(stripped, "labels") if is_json else split_labels(stripped, self.labels, self.separator)
        if not isinstance(value, list):
            kind = BlankRowError if value is None else RowError
            raise kind(f"expected labels to be a list of names, found {quoted(value)}")
        return [self._label(item, "each of labels") for item in value]

    def inspect_rows(self, rows: Sequence[Row], errors: ErrorCollector) -> None:
        """Find the separator of labels in the cells of a split."""
        self.separator = find_separator(row.fields.get("labels") for row in rows) if self.multi_label else None

    def _label(self, value: Any, what: str) -> str:
        """The label's name; a number is an index of the recipe's labels, if it lists them."""
        if value is None or (isinstance(value, str) and not value.strip()):
            raise BlankRowError(f"expected {what} to be a name or a whole number, found {quoted(value)}")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise RowError(f"expected {what} to be a name or a whole number, found {quoted(value)}")
        name = str(value).strip()
        numbered = any(label.isdecimal() for label in self.labels)  # then a number is a name, known or not
        if self.labels_by_number and name.isdecimal() and not numbered and int(name) < len(self.labels):
            return self.labels[int(name)]
        return name

    def fit_labels(self, examples: Mapping[str, Sequence[LabelledText]], errors: ErrorCollector) -> None:
        """Labels of the training rows, unless the recipe lists them, and their weights."""
        self.labels = fit_labels_from_examples(self.labels, examples, self.labels_of, errors)
        self.state |= find_pairs(examples, errors)
        if len(self.labels) < (1 if self.multi_label else 2) and examples["train"]:
            errors.add(
                f"the training rows hold {len(self.labels)} label(s): {', '.join(self.labels) or 'none'}; nothing to "
                "tell apart.",
                key="data.train",
            )
        counts = Counter(label for example in examples["train"] for label in example.labels)
        self.weights = fit_class_weights(self.class_weights, counts, self.labels, errors)
        if self.multi_label:
            others = {label: len(examples["train"]) - counts[label] for label in self.labels}
            if self.class_weights == "balanced":
                self.weights = [others[label] / max(1, counts[label]) for label in self.labels]
            self.log_odds = self._log_odds(counts, others)

    def _log_odds(self, counts: Mapping[str, int], others: Mapping[str, int]) -> list[float]:
        """The logit of each label's share of the weighted rows; one row more has it, and one has not.

        Outputs that start there learn from the texts at once. From 0 they first learn that labels are rare, and Adam
        remembers these large gradients for a thousand steps (Lin et al. 2017, arXiv:1708.02002, section 3.3).
        """
        odds = [(counts.get(label, 0) + 1) / (others[label] + 1) for label in self.labels]
        weights = self.weights or [1.0] * len(odds)
        return [math.log(weight * share) for weight, share in zip(weights, odds, strict=True)]

    def encode(
        self, examples: Sequence[TextPair], inputs: TextInputs, max_length: int, *, training: bool
    ) -> list[list[Feature]]:
        """See `Task.encode`."""
        labels = [self._target(row.labels) if isinstance(row, LabelledText) else None for row in examples]
        texts = [(row.text, row.text_pair) for row in examples]
        return encode_sequences(texts, labels, inputs.tokenizer, max_length, training=training)

    def _target(self, names: Sequence[str]) -> Any:
        if self.multi_label:
            return [float(label in names) for label in self.labels]
        return self.labels.index(names[0])

    def labels_of(self, example: LabelledText) -> tuple[str, ...]:
        """Its labels."""
        return example.labels

    def count(self, example: LabelledText) -> int:
        """Its labels."""
        return len(example.labels)

    def decode(
        self, example: TextPair, features: Sequence[Feature], logits: Sequence["torch.Tensor"]
    ) -> ClassPrediction:
        """The mean over the windows → one label, or every label above the threshold."""
        probabilities = self._probabilities(logits)
        by_label = dict(zip(self.labels, probabilities.tolist(), strict=True))
        given = (
            self._labels_over_threshold(by_label) if self.multi_label else (self.labels[int(probabilities.argmax())],)
        )
        return ClassPrediction(example.text, example.text_pair, given, by_label)

    @property
    def thresholds(self) -> list[float]:
        """The minimum probability of each predicted label, for multi_label."""
        default = DEFAULT_THRESHOLD if isinstance(self.threshold, str) else self.threshold
        fitted: list[float] = self.state.get("thresholds", [default] * len(self.labels))
        return fitted

    def _labels_over_threshold(self, probabilities: Mapping[str, float]) -> tuple[str, ...]:
        pairs = zip(self.labels, self.thresholds, strict=True)
        return tuple(label for label, threshold in pairs if probabilities[label] >= threshold)

    def calibrate(
        self, examples: Sequence[LabelledText], predictions: Sequence[ClassPrediction]
    ) -> Sequence[ClassPrediction]:
        """Fit the threshold of each label to the micro F1 of these examples; see `fit_thresholds`."""
        if not (examples and self.multi_label and self.threshold == "auto"):
            return predictions
        probabilities = [[row.probabilities[label] for label in self.labels] for row in predictions]
        self.state["thresholds"] = fit_thresholds(probabilities, [self._target(row.labels) for row in examples])
        return [replace(row, labels=self._labels_over_threshold(row.probabilities)) for row in predictions]

    def _probabilities(self, logits: Sequence["torch.Tensor"]) -> "torch.Tensor":
        """The calibrated probability of each label, (labels,), from the logits of each window."""
        temperature = temperature_of(self.state)
        if not self.multi_label:
            return (mean_log_probabilities(logits) / temperature).softmax(-1)
        if temperature == 1:
            return torch.stack([output.float() for output in logits]).sigmoid().mean(0)
        return (mean_logits(logits) / temperature).sigmoid()

    def fit_temperature(
        self,
        examples: Sequence[LabelledText],
        features: Sequence[Sequence[Feature]],
        outputs: Sequence[Sequence["torch.Tensor"]],
    ) -> None:
        """Set the temperature at which the labels of `examples` are most probable."""
        if not examples:
            return
        targets = [self._target(example.labels) for example in examples]
        combine = mean_logits if self.multi_label else mean_log_probabilities
        fit = fit_label_temperature if self.multi_label else fit_class_temperature
        self.state[TEMPERATURE] = fit(torch.stack([combine(logits) for logits in outputs]).numpy(), targets)

    def score(self, examples: Sequence[LabelledText], predictions: Sequence[ClassPrediction]) -> Scores:
        """Accuracy, macro and micro F1, Matthews' coefficient (one label), and scores by label."""
        if not examples:
            return Scores({self.metric.name: 0.0})
        return self._score_sets(examples, predictions) if self.multi_label else self._score_one(examples, predictions)

    def _score_one(self, examples: Sequence[LabelledText], predictions: Sequence[ClassPrediction]) -> Scores:
        gold, prediction = [row.labels[0] for row in examples], [row.labels[0] for row in predictions]
        present = [label for label in self.labels if label in {*gold, *prediction}]
        values = {
            "accuracy": sklearn_metrics.accuracy_score(gold, prediction),
            "macro_f1": sklearn_metrics.f1_score(gold, prediction, labels=present, average="macro", zero_division=0),
            "micro_f1": sklearn_metrics.f1_score(gold, prediction, labels=present, average="micro", zero_division=0),
            "matthews": sklearn_metrics.matthews_corrcoef(gold, prediction) if len({*gold, *prediction}) > 1 else 0.0,
        }
        counts = sklearn_metrics.confusion_matrix(gold, prediction, labels=self.labels)
        return Scores(
            _floats(values),
            self._by_label(gold, prediction, self.labels),
            Confusion(self.labels, counts.tolist()),
            calibration=self._calibration(examples, predictions),
        )

    def _score_sets(self, examples: Sequence[LabelledText], predictions: Sequence[ClassPrediction]) -> Scores:
        # one column more, always false: scikit-learn takes a table of one column for a binary task
        gold, prediction = (
            [[*(label in row.labels for label in self.labels), False] for row in rows]
            for rows in (examples, predictions)
        )
        columns = list(range(len(self.labels)))
        values = {
            "micro_f1": sklearn_metrics.f1_score(gold, prediction, labels=columns, average="micro", zero_division=0),
            "macro_f1": sklearn_metrics.f1_score(gold, prediction, labels=columns, average="macro", zero_division=0),
            "accuracy": sklearn_metrics.accuracy_score(gold, prediction),  # rows with every label right
        }
        calibration = self._calibration(examples, predictions)
        return Scores(_floats(values), self._by_label(gold, prediction, columns), calibration=calibration)

    def _calibration(
        self, examples: Sequence[LabelledText], predictions: Sequence[ClassPrediction]
    ) -> Calibration | None:
        """Calibration of the predicted label, or with multi_label of every label of every row."""
        pairs = [
            (probability, label in example.labels)
            for example, prediction in zip(examples, predictions, strict=True)
            for label, probability in prediction.probabilities.items()
            if self.multi_label or label == prediction.labels[0]
        ]
        return measure_calibration([probability for probability, _ in pairs], [right for _, right in pairs])

    def _by_label(self, gold: Any, prediction: Any, labels: Any) -> dict[str, dict[str, float]]:
        columns = sklearn_metrics.precision_recall_fscore_support(
            gold, prediction, labels=list(labels), zero_division=0
        )
        return {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for label, p, r, f, n in zip(self.labels, *columns, strict=True)
        }


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def imported_options(
    names: Sequence[str], multi_label: bool, threshold: float | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of an imported adapter."""
    return {"labels": list(names), "multi_label": multi_label} | ({} if threshold is None else {"threshold": threshold})
