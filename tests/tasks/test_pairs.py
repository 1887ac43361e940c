"""A task that was tuned on pairs of texts remembers it, and answers no single text."""

import json

import pytest
from click.testing import CliRunner

import peftlab
from peftlab.cli.app import cli
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector, RecipeError
from peftlab.store import TaskInfo
from peftlab.tasks.regression import RegressionTask
from peftlab.tasks.text_classification import TextClassificationTask
from tests.untrained import publish_untrained

TASKS = {
    "classes": (TextClassificationTask, {}, "label", ["yes", "no"]),
    "topics": (TextClassificationTask, {"multi_label": True}, "labels", [["yes"], ["yes", "no"]]),
    "number": (RegressionTask, {}, "label", [1.5, 2.0]),
}


def examples(task, column, labels, *, pairs):
    second = {"text_pair": "it rained ."} if pairs else {}
    return [task.read(Row({"text": "x", **second, column: label}, "f:1")) for label in labels]


def fitted(kind, *, pairs, validation=None):
    task_class, options, column, labels = TASKS[kind]
    task, errors = task_class(**options), ErrorCollector()
    splits = {"train": examples(task, column, labels, pairs=pairs)}
    if validation is not None:
        splits["validation"] = examples(task, column, labels, pairs=validation)
    task.fit_labels(splits, errors)
    return task, [str(issue) for issue in errors.issues]


@pytest.mark.parametrize("kind", TASKS)
def test_task_of_pairs_refuses_single_texts_after_publishing(kind):
    task, issues = fitted(kind, pairs=True)
    assert issues == []
    restored = TaskInfo.from_task(task).build()
    column, label = TASKS[kind][2], TASKS[kind][3][0]
    for row in ({"text": "x"}, {"text": "x", "text_pair": None}, {"text": "x", "second": "y"}):
        with pytest.raises(RowError, match="expected text_pair, the second text of a pair"):
            restored.read_input(Row(row, "f:1"))
        with pytest.raises(RowError, match="--column text_pair=your-name"):
            restored.read(Row({**row, column: label}, "f:1"))
    assert restored.read_input(Row({"text": "x", "text_pair": ""}, "f:1")).text_pair == ""


@pytest.mark.parametrize("kind", TASKS)
def test_task_of_single_texts_takes_them(kind):
    restored = TaskInfo.from_task(fitted(kind, pairs=False)[0]).build()
    assert restored.read_input(Row({"text": "x"}, "f:1")).text_pair is None


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize(("train", "what"), [(True, ("single texts", "pairs")), (False, ("pairs", "single texts"))])
def test_splits_are_all_pairs_or_none(kind, train, what):
    _, issues = fitted(kind, pairs=train, validation=not train)
    assert issues[0].startswith(
        f"data.validation: 2 of 2 rows are {what[0]} (first f:1), but the training rows are {what[1]}."
    )


@pytest.fixture(scope="module")
def pair_store(tmp_path_factory, tiny_base):
    """A store with an adapter for pairs."""
    from tests.conftest import recipe_in

    folder = tmp_path_factory.mktemp("pairs")
    rows = [{"text": "it rained .", "text_pair": "nobody came .", "label": "ab"[n % 2]} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"train": "rows.jsonl", "validation": "rows.jsonl", "test": None}
    recipe = recipe_in(folder, tiny_base, task={"type": "text-classification"}, data=data, name="r.yaml")
    publish_untrained(folder / "store", recipe, {"name": "pairs"})
    return folder / "store"


@pytest.mark.parametrize("rows", [["it rained ."], [{"text": "it rained ."}], [{"text": "x", "text_pair": "y"}, "x"]])
def test_bank_refuses_single_texts(pair_store, rows):
    bank = peftlab.load("pairs", store=pair_store, device="cpu")
    with pytest.raises(RecipeError, match="expected text_pair"):
        bank.predict(rows)
    assert bank.predict({"text": "it rained .", "text_pair": "nobody came ."})


def test_commands_refuse_single_texts_and_name_the_option(pair_store, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(cli, [str(a) for a in (*arguments, "--store", pair_store)])

    result = run("predict", "pairs", "it rained .")
    assert result.exit_code == 2
    assert "--context" in str(result.exception) + result.output
    assert run("predict", "pairs", "it rained .", "--context", "nobody came .").exit_code == 0
    (tmp_path / "rows.csv").write_text("text,second,label\nit rained .,nobody came .,a\n")
    assert run("evaluate", "pairs", "--data", tmp_path / "rows.csv").exit_code == 2
    mapped = run("evaluate", "pairs", "--data", tmp_path / "rows.csv", "--column", "text_pair=second")
    assert mapped.exit_code == 0, mapped.output
