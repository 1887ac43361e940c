"""Encode examples as features, and count in the ledgers the dropped rows, truncated rows and lost targets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from peftlab.base import Base
from peftlab.data import Ledger
from peftlab.data.splitting import stratified_folds
from peftlab.errors import ErrorCollector
from peftlab.recipe import AUTO, Recipe
from peftlab.tasks import Feature, ModelContext, Task
from peftlab.tasks.generation.settings import end_tokens, unused_base_defaults
from peftlab.tasks.inputs.inputs import NO_LENGTH_LIMIT
from peftlab.tasks.inputs.lost_characters import UNKNOWN_IN_TARGET
from peftlab.tuning.data_warnings import warn_about_splits
from peftlab.tuning.dataset import CROSS_VALIDATION, EncodedDataset, TuningDataset
from peftlab.tuning.feature_cache import cached_features
from peftlab.tuning.progress import Progress
from peftlab.tuning.session import TuningSession

WARN_LOST_SHARE = 0.05
NUM_FOLDS = 4
MIN_LENGTH = 8  # tokens, as of data.max_length
DEFAULT_LENGTH = 512  # tokens, if neither base nor recipe limits the input; T5 was trained on this length


def encode(dataset: TuningDataset, base: Base, recipe: Recipe, session: TuningSession) -> EncodedDataset:
    """Encode every example for the base, and report what was dropped, truncated and lost.

    Raises:
        RecipeError: the base does not support the length, or more is dropped or lost than `data.max_lost` allows.
    """
    with session.process_group.sync_errors():
        max_length = input_length(base, recipe)
        _report_length(max_length, base, recipe, session.progress)
        with ErrorCollector() as errors:
            dataset.task.bind_to_base(
                ModelContext(base.inputs, base.model.config, max_length, end_tokens(base.model)),
                dataset.examples,
                errors,
            )
        _report_unused_settings(dataset.task, base, session.progress)
        encoded = encode_dataset(dataset, base, max_length, recipe.data.max_lost, session.progress)
        return add_folds(encoded, base, recipe)


def encode_dataset(
    dataset: TuningDataset, base: Base, max_length: int, max_lost: float, progress: Progress
) -> EncodedDataset:
    """Encode every example, and complete the ledgers.

    Raises:
        RecipeError: a larger share of rows or targets than `max_lost` is dropped or truncated away.
    """
    features = {split: _encode_split(split, dataset, base, max_length, progress) for split in dataset.examples}
    progress.on_data_encoded(dataset.task, dataset.ledgers)
    _check_lost_share(dataset, max_length, max_lost, progress)
    warn_about_splits(dataset, progress)
    return EncodedDataset(dataset.rows, dataset.task, dataset.examples, dataset.ledgers, features, max_length)


def add_folds(dataset: EncodedDataset, base: Base, recipe: Recipe) -> EncodedDataset:
    """The dataset with folds of the training rows for cross-validation, if it has too few rows for a validation split.

    Held-out rows are encoded as for prediction.
    """
    examples = dataset.examples["train"]
    num_folds = min(NUM_FOLDS, len(examples))
    if recipe.data.validation != AUTO or "validation" in dataset.examples or num_folds < 2:
        return dataset
    labels = [list(dataset.task.targets.labels_of(example)) for example in examples]
    features = cached_features(dataset.task, examples, base, dataset.max_length, training=False)
    return replace(
        dataset,
        examples={**dataset.examples, CROSS_VALIDATION: examples},
        features={**dataset.features, CROSS_VALIDATION: features},
        folds=stratified_folds(labels, num_folds, recipe.data.seed),
    )


def input_length(base: Base, recipe: Recipe) -> int:
    """The longest input in tokens: `data.max_length`, or else the most that base and method allow.

    Raises:
        RecipeError: `data.max_length` is more than they allow, or the method's virtual tokens leave too few.
    """
    wanted, virtual = recipe.data.max_length, recipe.method.input_tokens
    available = (base.max_length if base.max_length < NO_LENGTH_LIMIT else wanted or DEFAULT_LENGTH) - virtual
    with ErrorCollector() as errors:
        if virtual and available < MIN_LENGTH:
            message = (
                f"{virtual} virtual tokens leave {max(0, available)} of the {base.max_length} that this base takes."
            )
            errors.add(message, key="method.num_virtual_tokens", hint="Use fewer.")
        elif wanted and wanted > available:
            detail = f", of which {virtual} are virtual" if virtual else ""
            message = f"{wanted} tokens are more than this base takes ({base.max_length}{detail})."
            errors.add(message, key="data.max_length")
    return wanted or available


def _report_length(max_length: int, base: Base, recipe: Recipe, progress: Progress) -> None:
    if base.max_length >= NO_LENGTH_LIMIT and not recipe.data.max_length:
        progress.info(
            f"This base takes inputs of any length, and the recipe sets no data.max_length: {max_length} tokens are "
            "used."
        )
    if virtual := recipe.method.input_tokens:
        progress.info(
            f"{virtual} of the {base.max_length} tokens of an input are virtual tokens: {max_length} are left."
        )


def _report_unused_settings(task: Task, base: Base, progress: Progress) -> None:
    unused = unused_base_defaults(base.model) if task.outputs.generation(Feature({}, None)) else {}
    if unused:
        settings = ", ".join(f"{name}: {value}" for name, value in unused.items())
        progress.info(f"The generation_config of this base is not used ({settings}); task.generation is.")


def _encode_split(
    split: str, dataset: TuningDataset, base: Base, max_length: int, progress: Progress
) -> list[list[Feature]]:
    """The features of each example of a split, counted in its ledger."""
    task, examples, training = dataset.task, dataset.examples[split], split == "train"
    with progress.track_encoding(split) as on_progress:
        encoded = cached_features(task, examples, base, max_length, training=training, on_progress=on_progress)
    count = _count_training_example if training else _count_example
    for example, features in zip(examples, encoded, strict=True):
        count(task, example, features, dataset.ledgers[split])
    coverage = base.inputs.coverage([text for example in examples for text in example.texts])
    dataset.ledgers[split].unknown_tokens = round(coverage.unknown_tokens, 4)
    dataset.ledgers[split].unknown_characters = round(coverage.unknown_characters, 4)
    if warning := coverage.warning(split):
        progress.warn(warning)
    return encoded


def _count_training_example(task: Task, example: Any, features: Sequence[Feature], ledger: Ledger) -> None:
    if not features:
        ledger.drop(task.targets.empty_reason)
        return
    _count_example(task, example, features, ledger)
    ledger.num_lost_targets += task.targets.count_lost(example, features)


def _count_example(task: Task, example: Any, features: Sequence[Feature], ledger: Ledger) -> None:
    ledger.used += 1
    ledger.truncated += any(feature.truncated for feature in features)
    for warning in dict.fromkeys(warning for feature in features for warning in feature.warnings):
        ledger.add_warning(warning)
    ledger.targets += task.targets.count(example) + example.num_lost_targets


def _lost_hint(ledger: Ledger) -> str:
    unknown = ledger.warnings.get(UNKNOWN_IN_TARGET, 0)
    lengths = "Raise data.max_length, split long rows"
    return (
        f"Use a base whose tokenizer knows all characters ({unknown} rows)" if unknown > ledger.truncated else lengths
    )


def _check_lost_share(dataset: TuningDataset, max_length: int, max_lost: float, progress: Progress) -> None:
    with ErrorCollector() as errors:
        for split, ledger in dataset.ledgers.items():
            message = (
                f"{split} loses {ledger.lost_fraction:.0%}: {sum(ledger.dropped.values())} of {ledger.read} rows "
                f"dropped, {ledger.num_lost_targets} of {ledger.targets} {dataset.task.targets.noun} lost "
                f"({ledger.truncated} rows truncated at {max_length} tokens)."
            )
            if ledger.lost_fraction > max_lost:
                hint = f"{_lost_hint(ledger)}, or allow it: data.max_lost: {ledger.lost_fraction:.2f}"
                errors.add(message, key=f"data.{split}", hint=hint)
            elif ledger.lost_fraction > WARN_LOST_SHARE:
                progress.warn(message)
        if not dataset.ledgers["train"].used:
            errors.add("no training row is left.", key="data.train")
