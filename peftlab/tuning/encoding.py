"""Training examples → features, and the last entries of the ledger: what was dropped, cut and lost."""

from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.base import Base
from peftlab.data import Ledger
from peftlab.errors import Problems
from peftlab.recipe import DataSection
from peftlab.tasks import Feature, Task
from peftlab.tuning.progress import Progress

WARN_LOST = 0.05


def encode(
    task: Task,
    examples: Mapping[str, Sequence[Any]],
    base: Base,
    max_length: int,
    max_lost: float,
    ledgers: Mapping[str, Ledger],
    progress: Progress,
) -> list[Feature]:
    """The training features, each cut at `max_length` tokens; validation and test are read whole, in windows.

    Raises:
        RecipeError: a larger share of rows or targets than `max_lost` is dropped or cut away.
    """
    features = [
        feature
        for example in examples["train"]
        for feature in _train_features(task, example, base, max_length, ledgers["train"])
    ]
    for split in examples.keys() - {"train"}:
        for example in examples[split]:
            _count_used(task, example, ledgers[split])
    progress.data_read(task, ledgers)
    _check_losses(task, ledgers, max_length, max_lost, progress)
    return features


def input_length(base: Base, section: DataSection) -> int:
    """The longest input in tokens: the recipe's, within what the base takes.

    Raises:
        RecipeError: the recipe asks for more than the base takes.
    """
    with Problems() as problems:
        if section.max_length and section.max_length > base.max_length:
            message = f"{section.max_length} tokens are more than this base takes ({base.max_length})."
            problems.add(message, key="data.max_length")
    return section.max_length or base.max_length


def _train_features(task: Task, example: Any, base: Base, max_length: int, ledger: Ledger) -> list[Feature]:
    features = task.encode(example, base.tokenizer, max_length, training=True)
    if not features:
        ledger.drop("no words in it")
        return []
    _count_used(task, example, ledger)
    ledger.cut += any(feature.cut for feature in features)
    ledger.targets_lost += task.lost(example, features)
    return features


def _count_used(task: Task, example: Any, ledger: Ledger) -> None:
    ledger.used += 1
    ledger.targets += task.count(example) + example.lost


def _check_losses(
    task: Task, ledgers: Mapping[str, Ledger], max_length: int, max_lost: float, progress: Progress
) -> None:
    with Problems() as problems:
        for split, ledger in ledgers.items():
            told = (
                f"{split} loses {ledger.lost_share:.0%}: {sum(ledger.dropped.values())} of {ledger.read} rows "
                f"dropped, {ledger.targets_lost} of {ledger.targets} {task.targets} lost "
                f"({ledger.cut} rows cut at {max_length} tokens)."
            )
            if ledger.lost_share > max_lost:
                hint = f"Raise data.max_length, split long rows, or allow it: data.max_lost: {ledger.lost_share:.2f}"
                problems.add(told, key=f"data.{split}", hint=hint)
            elif ledger.lost_share > WARN_LOST:
                progress.warn(told)
        if not ledgers["train"].used:
            problems.add("no training row is left.", key="data.train")
