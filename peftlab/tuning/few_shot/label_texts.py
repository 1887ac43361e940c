"""Names of labels as texts: further rows of their classes, where they help."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.data.splitting import stratified_folds
from peftlab.tasks import Feature, Task
from peftlab.tasks.heads import Head
from peftlab.tasks.inputs.encoding import encode_examples
from peftlab.tuning.baselines.linear_probe import DEFAULT_STRENGTH, fit_probe, probe_loss
from peftlab.tuning.baselines.states import FrozenStates
from peftlab.tuning.few_shot.states import label_text_states, row_states
from peftlab.tuning.run import Run

WORD = re.compile(r"[^\W\d_]{3,}")
BOUNDARY = re.compile(r"[_\W]+|(?<=[a-z])(?=[A-Z])")
NUMBER = re.compile(r"\d+")
COPIES = (0, 1, 2, 4, 8)
"""How many rows a label's text may count as."""
MAX_TEXT_STATES = 100
"""More copies of all labels' texts than this are not tried: many classes need few."""
NUM_FOLDS = 4


@dataclass(frozen=True)
class LabelTexts:
    """The features of the labels' texts, one per label in order, and how many rows each counts as; empty if none."""

    features: Sequence[Feature] = ()
    copies: int = 0

    def extend(self, states: FrozenStates, of_texts: FrozenStates) -> FrozenStates:
        """`states`, and those of the labels' texts as many times as they count."""
        parts = [states, *[of_texts] * self.copies]
        return FrozenStates(
            torch.cat([part.states for part in parts]),
            torch.cat([part.targets for part in parts]),
            torch.cat([part.rows for part in parts]),
        )


def words_of(label: str) -> str:
    """A label's name as a text: `card_arrival` → `card arrival`, `PartOf` → `part of`; empty if it has no word."""
    return " ".join(BOUNDARY.split(label)).strip().lower() if WORD.search(label) else ""


def encode_label_texts(task: Task, run: Run) -> list[Feature]:
    """One feature per label, with the label as its target.

    There is none if labels have no words, or differ only in numbers, or if the task reads something else than a text.
    """
    texts = [words_of(label) for label in task.head.labels]
    if "" in texts or len({NUMBER.sub("", text) for text in texts}) < len(texts):
        return []
    try:
        examples = [task.read_input(Row({"text": text}, "label")) for text in texts]
    except RowError:  # the task reads something else, such as an image, or marked entities
        return []
    encoded = encode_examples(task, run.base.inputs, examples, max_length=run.dataset.max_length, training=True)
    return [replace(windows[0], labels=label) for label, windows in enumerate(encoded)] if all(encoded) else []


def choose_label_texts(run: Run) -> LabelTexts:
    """The labels' texts, each as many times as helps; none if they do not help, or if a label has no row."""
    features = encode_label_texts(run.task, run)
    rows = row_states(run)
    if len(set(rows.targets.tolist())) < len(run.task.head.labels) or not features:
        return LabelTexts()
    copies = best_copies(rows, label_text_states(run, features), run.task.head, run.recipe.data.seed)
    return LabelTexts(features, copies) if copies else LabelTexts()


def best_copies(rows: FrozenStates, of_texts: FrozenStates, head: Head, seed: int) -> int:
    """How many rows each label's text counts as for the lowest loss of a linear probe in a cross-validation."""
    labels = [[str(label)] for label in rows.targets.tolist()]
    folds = [fold for fold in stratified_folds(labels, NUM_FOLDS, seed) if fold]
    tried = [copies for copies in COPIES if copies <= 1 or copies * len(of_texts) <= MAX_TEXT_STATES]

    def loss(copies: int) -> float:
        texts = LabelTexts(copies=copies)
        return sum(
            _fold_loss(texts.extend(rows.select(fold, invert=True), of_texts), rows, head, fold) for fold in folds
        )

    return min(tried, key=loss)


def _fold_loss(fitted: FrozenStates, rows: FrozenStates, head: Head, fold: Sequence[int]) -> float:
    """The summed loss of the rows of `fold` by a probe on `fitted`."""
    held_out, probe = rows.select(fold), fit_probe(fitted, head, strength=DEFAULT_STRENGTH)
    return float(probe_loss(held_out.states @ probe.weight.T + probe.bias, held_out.targets, head)) * len(fold)
