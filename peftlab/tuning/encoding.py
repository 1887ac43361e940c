"""Examples → features, and the last entries of the ledger: what was dropped, cut and lost."""

from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.base import UNLIMITED, Base
from peftlab.data import Ledger
from peftlab.errors import ErrorCollector
from peftlab.recipe import Recipe
from peftlab.tasks import Feature, Task
from peftlab.tuning.feature_cache import remembered_features
from peftlab.tuning.progress import Progress

WARN_LOST = 0.05
SHORTEST = 8  # tokens, as of data.max_length
UNSTATED = 512  # tokens, where neither base nor recipe says how long an input may be: what T5 was trained on


def encode(
    task: Task,
    examples: Mapping[str, Sequence[Any]],
    base: Base,
    max_length: int,
    max_lost: float,
    ledgers: Mapping[str, Ledger],
    progress: Progress,
) -> dict[str, list[list[Feature]]]:
    """The features of each example: in training each cut at `max_length` tokens, else read whole, in windows.

    Raises:
        RecipeError: a larger share of rows or targets than `max_lost` is dropped or cut away.
    """
    encoded = {}
    for split, chosen in examples.items():
        with progress.encoding(split) as told:
            encoded[split] = remembered_features(
                task, chosen, base, max_length, training=split == "train", on_progress=told
            )
        count = _count_cut if split == "train" else _count_used
        for example, features in zip(chosen, encoded[split], strict=True):
            count(task, example, features, ledgers[split])
    progress.data_read(task, ledgers)
    _check_losses(task, ledgers, max_length, max_lost, progress)
    return encoded


def input_length(base: Base, recipe: Recipe) -> int:
    """The longest input in tokens: the recipe's, within what the base takes and the method leaves of it.

    Raises:
        RecipeError: the recipe asks for more than there is, or the method leaves next to nothing.
    """
    asked, taken = recipe.data.max_length, recipe.method.input_tokens
    there = (base.max_length if base.max_length < UNLIMITED else asked or UNSTATED) - taken
    with ErrorCollector() as errors:
        if taken and there < SHORTEST:
            message = f"{taken} virtual tokens leave {max(0, there)} of the {base.max_length} that this base takes."
            errors.add(message, key="method.num_virtual_tokens", hint="Take fewer.")
        elif asked and asked > there:
            virtual = f", of which {taken} are virtual" if taken else ""
            message = f"{asked} tokens are more than this base takes ({base.max_length}{virtual})."
            errors.add(message, key="data.max_length")
    return asked or there


def _count_cut(task: Task, example: Any, features: Sequence[Feature], ledger: Ledger) -> None:
    if not features:
        ledger.drop(task.empty)
        return
    _count_used(task, example, features, ledger)
    ledger.num_lost_targets += task.lost(example, features)


def _count_used(task: Task, example: Any, features: Sequence[Feature], ledger: Ledger) -> None:
    ledger.used += 1
    ledger.truncated += any(feature.truncated for feature in features)
    ledger.targets += task.count(example) + example.num_lost_targets


def _check_losses(
    task: Task, ledgers: Mapping[str, Ledger], max_length: int, max_lost: float, progress: Progress
) -> None:
    with ErrorCollector() as errors:
        for split, ledger in ledgers.items():
            told = (
                f"{split} loses {ledger.lost_share:.0%}: {sum(ledger.dropped.values())} of {ledger.read} rows "
                f"dropped, {ledger.num_lost_targets} of {ledger.targets} {task.targets} lost "
                f"({ledger.truncated} rows cut at {max_length} tokens)."
            )
            if ledger.lost_share > max_lost:
                hint = f"Raise data.max_length, split long rows, or allow it: data.max_lost: {ledger.lost_share:.2f}"
                errors.add(told, key=f"data.{split}", hint=hint)
            elif ledger.lost_share > WARN_LOST:
                progress.warn(told)
        if not ledgers["train"].used:
            errors.add("no training row is left.", key="data.train")
