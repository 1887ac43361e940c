"""Validation and test rows split off by label."""

import random
from collections import Counter

import pytest

from peftlab.data import Row, Split
from peftlab.data.splitting import split_off_fractions
from peftlab.errors import ErrorCollector, RecipeError
from peftlab.recipe import read_recipe
from peftlab.tuning.dataset import load_dataset
from tests.task_stores import recipe_for


def labels_of(row):
    return row.fields["labels"]


def split_labels(labels_by_row, fractions, seed=13):
    """Split → the labels of each of its rows."""
    rows = [Row({"labels": labels, "n": n}, f"rows:{n}") for n, labels in enumerate(labels_by_row)]
    with ErrorCollector() as errors:
        splits = split_off_fractions({"train": Split(rows, "rows")}, fractions, seed, errors, labels_of)
    numbers = [row.fields["n"] for split in splits.values() for row in split.rows]
    assert sorted(numbers) == list(range(len(rows)))
    return {name: [row.fields["labels"] for row in split.rows] for name, split in splits.items()}


def count_labels(rows):
    return Counter(label for labels in rows for label in labels)


@pytest.mark.parametrize("seed", range(5))
def test_classes_keep_their_shares_in_every_split(seed):
    classes = [["a"]] * 60 + [["b"]] * 30 + [["c"]] * 10
    splits = split_labels(classes, {"validation": 0.1, "test": 0.2}, seed)
    assert count_labels(splits["validation"]) == {"a": 6, "b": 3, "c": 1}
    assert count_labels(splits["test"]) == {"a": 12, "b": 6, "c": 2}


@pytest.mark.parametrize("seed", range(20))
def test_training_rows_keep_every_label(seed):
    """Single labels and several labels, with rare ones, as entity types of sentences are."""
    generator = random.Random(seed)
    names = [f"label {n}" for n in range(12)]
    weights = [1 / (n + 1) ** 2 for n in range(12)]
    rows = [sorted(set(generator.choices(names, weights, k=generator.randint(0, 4)))) for _ in range(80)]
    splits = split_labels(rows, {"validation": 0.1, "test": 0.1}, seed)
    assert (len(splits["validation"]), len(splits["test"])) == (8, 8)
    assert count_labels(splits["train"]).keys() == count_labels(rows).keys()
    frequent = {label for label, count in count_labels(rows).items() if count >= 20}
    assert frequent <= count_labels(splits["validation"]).keys()


def test_more_classes_than_validation_rows_are_all_different():
    rows = [[f"class {n % 77}"] for n in range(231)]
    splits = split_labels(rows, {"validation": 0.1})
    assert set(count_labels(splits["validation"]).values()) == {1}
    assert len(splits["validation"]) == 23


def test_rows_without_labels_are_split_in_proportion():
    splits = split_labels([["PER"]] * 20 + [[]] * 80, {"validation": 0.1})
    assert Counter(map(tuple, splits["validation"])) == {("PER",): 2, (): 8}


def test_split_depends_on_seed():
    rows = [["a"], ["b"]] * 50
    first = split_labels(rows, {"validation": 0.1}, seed=1)
    assert split_labels(rows, {"validation": 0.1}, seed=1) == first


def test_only_rows_of_their_own_class_raise_recipe_error():
    with pytest.raises(RecipeError, match="10% of 3 training rows cannot be split off"):
        split_labels([["a"], ["b"], ["c"]], {"validation": 0.1})


@pytest.mark.parametrize("kind", ["classes", "entities"])
def test_dataset_of_a_task_is_split_by_label(tmp_path, tiny_base, kind):
    for seed in range(10):
        recipe = read_recipe(recipe_for(tmp_path / kind, tiny_base, kind, data={"validation": 0.2, "seed": seed}))
        with ErrorCollector() as errors:
            dataset = load_dataset(recipe, errors)
        labels = {
            split: {label for example in examples for label in dataset.task.targets.labels_of(example)}
            for split, examples in dataset.examples.items()
        }
        assert labels["validation"] <= labels["train"]
