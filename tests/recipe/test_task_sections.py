"""The task section of a recipe: what is refused, what the rows of each task must hold, and each tuned end to end."""

import json
import os
import shlex
import signal

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

import peftlab
from peftlab.base import BaseFiles
from peftlab.data import Row, load_rows
from peftlab.errors import ErrorCollector, RecipeError, TuningInterrupted
from peftlab.recipe import Recipe, read_recipe
from peftlab.store import Store
from peftlab.tasks import TASKS, build_task
from peftlab.tasks.inputs.text import TextInputs, load_tokenizer
from peftlab.tasks.prediction import forward
from peftlab.tuning import Progress, tune
from tests.model_cards import model_of_card
from tests.task_stores import KINDS, recipe_for, run, task_store, to_json_lines  # noqa: F401  # a fixture

KEYS = {
    "token-classification": "class_weights, label_smoothing, labels, tag_scheme, type",
    "text-classification": "class_weights, label_smoothing, labels, multi_label, threshold, type",
    "regression": "loss, type",
    "question-answering": "doc_stride, max_answer_length, type",
    "relation-extraction": "class_weights, label_smoothing, labels, negative_label, type",
    "causal-lm": "generation, scored_by, system, template, type",
    "preference": "beta, generation, label_smoothing, loss_type, system, template, type",
    "domain-adaptation": "generation, mask_probability, objective, type",
    "translation": "bleu_tokenize, generation, prefix, source_language, target_language, type",
    "summarization": "generation, prefix, rouge_tokenize, type",
}
KNOWN = (
    "Known: causal-lm, domain-adaptation, preference, question-answering, regression, relation-extraction, "
    "summarization, text-classification, token-classification, translation."
)


@pytest.fixture
def get_errors(tmp_path):
    """What reading a recipe with this task section complains about; its first line is line 4."""

    def get_errors(task, overrides=None):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"name: my-task\nbase:\n  model: some/model\n{task}\ndata:\n  train: train.txt\n")
        with pytest.raises(RecipeError) as caught:
            read_recipe(path, overrides)
        return [str(issue).replace(f"{tmp_path}/", "") for issue in caught.value.errors]

    return get_errors


# --- the section is a union by `type`


def test_every_task_has_one_section():
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]["task"]["discriminator"]["mapping"]) == set(TASKS) == set(KEYS)


@pytest.mark.parametrize(
    ("kind", "key", "meant"),
    [
        ("token-classification", "label", "labels"),
        ("token-classification", "tag_sceme", "tag_scheme"),
        ("text-classification", "multilabel", "multi_label"),
        ("text-classification", "class_weight", "class_weights"),
        ("regression", "los", "loss"),
        ("question-answering", "docstride", "doc_stride"),
        ("question-answering", "max_answer_len", "max_answer_length"),
        ("relation-extraction", "negative_lable", "negative_label"),
    ],
)
def test_unknown_key_reports_line_suggestion_and_known_keys(get_errors, kind, key, meant):
    errors = get_errors(f"task:\n  type: {kind}\n  {key}: null")
    assert errors[0] == f"recipe.yaml:6  task.{key}: unknown key. Did you mean '{meant}'? Keys here: {KEYS[kind]}."


def test_nested_section_key_suggests_nested_keys(get_errors):
    generation = "task:\n  type: causal-lm\n  generation:\n    max_new_token: 9\n    num_beam: x"
    first, second, third = get_errors(generation)
    assert first.startswith("recipe.yaml:7  task.generation.max_new_token: unknown key. Did you mean 'max_new_tokens'?")
    assert second.startswith("recipe.yaml:8  task.generation.num_beam: unknown key. Did you mean 'num_beams'?")
    assert third == "recipe.yaml:8  task.generation.num_beams: should be a valid integer, not 'x'."


@pytest.mark.parametrize("kind", KEYS)
def test_unknown_key_without_match_lists_keys(get_errors, kind):
    assert get_errors(f"task:\n  type: {kind}\n  xyzzy: 1") == [
        f"recipe.yaml:6  task.xyzzy: unknown key. Keys here: {KEYS[kind]}."
    ]


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        (kind, other)
        for kind in KEYS
        for other in ("tag_scheme", "threshold", "loss", "doc_stride", "negative_label")
        if other not in KEYS[kind]
    ],
)
def test_keys_of_another_task_are_refused(get_errors, kind, other):
    issue = get_errors(f"task:\n  type: {kind}\n  {other}: null")[0]
    assert issue.startswith(f"recipe.yaml:6  task.{other}: unknown key.")
    assert issue.endswith(f"Keys here: {KEYS[kind]}.")


@pytest.mark.parametrize(
    ("kind", "line", "issue"),
    [
        ("token-classification", "tag_scheme: bio", "tag_scheme: unknown tag_scheme 'bio'. "),
        ("token-classification", "labels: []", "labels: "),
        ("text-classification", "multi_label: yes", "multi_label: should be a valid boolean, not 'yes'."),
        ("text-classification", "threshold: 1.0", "threshold: should be 'auto', or less than 1, not 1.0."),
        ("text-classification", "threshold: 0", "threshold: should be 'auto', or greater than 0, not 0."),
        ("text-classification", "class_weights: balance", "class_weights: unknown class_weights 'balance'. Did "),
        ("text-classification", "class_weights: [1, 2]", "class_weights: should be 'balanced', or a "),
        ("text-classification", "labels: [a, a]", "labels: should be unique, non-empty names, not ['a', 'a']."),
        ("text-classification", "labels: [0, 1]", "labels: should be a valid string, not "),
        ("regression", "loss: rmse", "loss: unknown loss 'rmse'. Did you mean 'mse'? Known: mae, mse."),
        ("question-answering", "doc_stride: 0", "doc_stride: should be greater than or equal to 1, not 0."),
        ("question-answering", "doc_stride: 9.5", "doc_stride: should be a valid integer, "),
        ("question-answering", "max_answer_length: many", "max_answer_length: should be a valid integer, not 'many'."),
        ("relation-extraction", "negative_label: [a]", "negative_label: should be a valid string, not ['a']."),
    ],
)  # fmt: skip
def test_wrong_task_value_reports_line(get_errors, kind, line, issue):
    errors = get_errors(f"task:\n  type: {kind}\n  {line}")
    assert len(errors) == 1
    assert errors[0].startswith(f"recipe.yaml:6  task.{issue}")


@pytest.mark.parametrize(
    "section", ["task: {}", "task:\n  type:", "task:\n  multi_label: true", "task:\n  labels: [a]"]
)
def test_missing_type_is_reported_alone(get_errors, section):
    errors = get_errors(section)
    assert len(errors) == 1, errors
    assert "task.type: " in errors[0]


@pytest.mark.parametrize("key", ["tpye", "Type", "typ"])
def test_misspelled_type_key_is_reported_once(get_errors, key):
    errors = get_errors(f"task:\n  {key}: regression\n  loss: mae")
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"recipe.yaml:5  task.{key}: unknown key. Did you mean 'type'?")


@pytest.mark.parametrize("section", ["task: regression", "task: [regression]", "task: 3"])
def test_task_that_is_not_a_section_is_reported(get_errors, section):
    [issue] = get_errors(section)
    assert issue.startswith("recipe.yaml:4  task: should be ")


def test_misspelled_type_is_repaired_and_its_keys_checked(get_errors):
    assert get_errors("task:\n  type: text-clasification\n  multi_label: 3\n  loss: mae") == [
        f"recipe.yaml:5  task.type: unknown type 'text-clasification'. Did you mean 'text-classification'? {KNOWN}",
        "recipe.yaml:6  task.multi_label: should be a valid boolean, not 3.",
        f"recipe.yaml:7  task.loss: unknown key. Keys here: {KEYS['text-classification']}.",
    ]


@pytest.mark.parametrize("kind", ["ner", "xyzzy", "3", "[a]"])
def test_unknown_type_is_reported_alone(get_errors, kind):
    [issue] = get_errors(f"task:\n  type: {kind}\n  multi_label: 3\n  foo: bar")
    assert issue.startswith("recipe.yaml:5  task.type: unknown type ")
    assert issue.endswith(KNOWN)


def test_rows_are_not_checked_with_placeholder_task(tmp_path, tiny_base):
    recipe = recipe_for(tmp_path, tiny_base, "classes")
    for kind, errors in (("xyzzy", 1), ("text-clasification", 1), ("relation-extractoin", 2)):
        with pytest.raises(RecipeError) as caught:
            tune(recipe, store=tmp_path / "store", overrides={"task": {"type": kind}})
        messages = [issue.message for issue in caught.value.errors]
        assert messages[0] == f"unknown type '{kind}'."
        assert (len(messages) >= errors) if errors > 1 else (len(messages) == 1)


def test_overrides_change_task_keys(get_errors, tmp_path, tiny_base):
    recipe = recipe_for(tmp_path, tiny_base, "classes")
    shown = YAML(typ="safe").load(run("recipe", "show", recipe, "-o", "task.multi_label=true").stdout)
    assert shown["task"] == {
        "type": "text-classification",
        "labels": None,
        "multi_label": True,
        "threshold": "auto",
        "class_weights": "balanced",
        "label_smoothing": 0.0,
    }
    assert get_errors("task:\n  type: regression", {"task.multi_label": True}) == [
        f"-o task.multi_label=true  task.multi_label: unknown key. Keys here: {KEYS['regression']}."
    ]
    assert get_errors("task:\n  type: regression", {"task.loss": "mea"})[0].startswith(
        "-o task.loss=mea  task.loss: unknown loss 'mea'. Did you mean "
    )


@pytest.mark.parametrize("kind", KEYS)
def test_recipe_show_prints_valid_recipe_with_defaults(tmp_path, kind):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: my-task\nbase: {{model: some/model}}\ntask: {{type: {kind}}}\ndata: {{train: a.txt}}\n")
    shown = run("recipe", "show", path).stdout
    assert ", ".join(sorted(YAML(typ="safe").load(shown)["task"])) == KEYS[kind]
    (tmp_path / "shown.yaml").write_text(shown)
    assert run("recipe", "show", tmp_path / "shown.yaml").stdout == shown


def test_schema_describes_keys_of_every_type():
    sections = json.loads(run("recipe", "schema").stdout)["$defs"]
    typed = [section for section in sections.values() if "type" in section["properties"]]
    by_type = {section["properties"]["type"].get("const"): section for section in typed}
    for kind, keys in KEYS.items():
        section = by_type[kind]
        assert ", ".join(sorted(section["properties"])) == keys
        assert section["additionalProperties"] is False
        assert section["required"] == ["type"]
        for name, described in section["properties"].items():
            assert name == "type" or described["description"], name


# --- rows that a task cannot read


@pytest.fixture
def errors_of(tmp_path, tiny_base):
    """What is told where the rows of some splits of a kind are others."""

    def errors_of(kind, rows, splits=("train",), **changes):
        path = recipe_for(tmp_path, tiny_base, kind, **changes)
        for split in splits:
            (tmp_path / f"{split}.jsonl").write_text(to_json_lines(rows), encoding="utf8")
        errors = ErrorCollector()
        recipe = read_recipe(path, errors=errors)
        build_task(recipe.task, load_rows(recipe.data, errors), errors)
        messages = [str(issue).replace(f"{tmp_path}/", "") for issue in errors.issues]
        return [issue.removeprefix("recipe.yaml: ") for issue in messages]

    return errors_of


SPLITS = ("train", "validation", "test")
NER, CLASSES, TOPICS, RATING, ANSWERS, RELATIONS = (
    "entities", "classes", "topics", "rating", "answers", "relations"
)  # fmt: skip
SPANS = {"text": "Ada left Rome .", "head": {"start": 0, "end": 3}, "tail": {"start": 9, "end": 13}, "label": "Other"}
ASKED = {"question": "who ?", "context": "Ada met Ada ."}


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        # a missing field
        (NER, {"tokens": ["Ada"]}, "expected columns tokens and tags, or text and entities; found tokens. Map yours"),
        (CLASSES, {"text": "x"}, "expected columns text and label; found text. Map yours under data.columns"),
        (TOPICS, {"text": "x", "label": "train"}, "found text, label. Is 'label' the labels? Map yours under data.col"),
        (RATING, {"label": 3}, "expected columns text and label; found label. "),
        (ANSWERS, ASKED, "expected columns question and context and answers, or question and context and answer; "),
        (RELATIONS, {"text": "a b", "label": "Other"}, "expected columns text and head and tail and label, or tokens "),
        # a wrong type
        (NER, {"tokens": ["Ada"], "tags": [3]}, "tags are numbers ([3]); list the tags in the order"),
        (NER, {"text": "Ada", "entities": {"a": 1}}, "expected entities to be a list of {start, end, label}, found "),
        (CLASSES, {"text": ["x"], "label": "good"}, "expected text to be a string, found ['x']"),
        (CLASSES, {"text": "x", "label": True}, "expected label to be a name or a whole number, found True"),
        (TOPICS, {"text": "x", "labels": [None]}, "expected each of labels to be a name or a whole number, found None"),
        (RATING, {"text": "x", "label": "3,5"}, "expected label to be a number, found '3,5'"),
        (RATING, {"text": "x", "label": "nan"}, "expected label to be a number, found 'nan'"),
        (ANSWERS, {**ASKED, "answers": "Ada"}, "expected answers as JSON; Expecting value at column 1"),
        (ANSWERS, {**ASKED, "answers": [{"text": "Ada"}]}, "expected answers as a list of {text, answer_start}, "),
        (RELATIONS, {**SPANS, "head": "Ada"}, "expected head as JSON; Expecting value at column 1"),
        (RELATIONS, {**SPANS, "label": 3}, "expected label to be the name of a relation, found 3"),
        # a span out of range
        (NER, {"text": "Ada", "entities": [{"start": 0, "end": 4, "label": "PER"}]}, "with 0 ≤ start < end ≤ 3, "),
        (NER, {"text": "Ada", "entities": [{"start": 2, "end": 2, "label": "PER"}]}, "with 0 ≤ start < end ≤ 3, "),
        (ANSWERS, {**ASKED, "answers": [{"text": "Ada", "answer_start": 5}]}, "expected 'Ada' at character 5 of the"),
        (ANSWERS, {**ASKED, "answers": [{"text": "Ada", "answer_start": 99}]}, "context (0 to 13); it occurs at 0, 8"),
        (ANSWERS, {**ASKED, "answer": "Ada"}, "expected answer_start, the place of 'Ada' in the context; it oc"),
        (RELATIONS, {**SPANS, "tail": {"start": 9, "end": 16}}, "expected tail as {start, end, type?} in characters"),
        (RELATIONS, {**SPANS, "tail": {"start": 2, "end": 5}}, "expected head and tail apart, but 'Ada' (0–3) and '"),
        # an empty text
        (NER, {"text": " ", "entities": []}, "expected text to hold some text, found ' '"),
        (NER, {"tokens": [], "tags": []}, "expected tokens to hold some text, found none"),
        (CLASSES, {"text": "", "label": "good"}, "expected text to hold some text, found ''"),
        (CLASSES, {"text": "x", "text_pair": "", "label": "good"}, "expected text_pair to hold some text, found ''"),
        (RATING, {"text": "\n", "label": 3}, "expected text to hold some text, found '\\n'"),
        (ANSWERS, {"question": "", "context": "Ada", "answers": []}, "expected question to hold some text, found ''"),
        (ANSWERS, {"question": "x", "context": "", "answers": []}, "expected context to hold some text, found ''"),
        (RELATIONS, {**SPANS, "text": ""}, "expected text to hold some text, found ''"),
        (RELATIONS, {"text": "<e1> </e1> b <e2>c</e2>", "label": "Other"}, "expected head to hold some text, found "),
    ],
)  # fmt: skip
def test_bad_row_reports_line_and_expectation(errors_of, kind, row, expected):
    good = KINDS[kind][1]
    errors = errors_of(kind, [*good[:9], row, *good[9:]])
    assert len(errors) == 1, errors
    assert errors[0].startswith("train.jsonl:10: ")
    assert expected in errors[0]


@pytest.mark.parametrize(
    ("kind", "row", "label", "meant"),
    [
        (NER, {"tokens": ["Ada"], "tags": ["B-PERS"]}, "PERS", "PER"),
        (CLASSES, {"text": "x", "label": "goood"}, "goood", "good"),
        (TOPICS, {"text": "x", "labels": ["train", "trian"]}, "trian", "train"),
        (RELATIONS, {**SPANS, "label": "left(e2,e1)"}, "left(e2,e1)", "left(e1,e2)"),
    ],
)
def test_label_missing_from_training_reports_line_and_suggestion(errors_of, kind, row, label, meant):
    [issue] = errors_of(kind, [*KINDS[kind][1][:3], row], ("validation",))
    assert (
        f"label '{label}' occurs in validation (1×, first at validation.jsonl:4) but not in the training rows." in issue
    )
    assert f"Did you mean '{meant}'?" in issue
    assert "recipe.yaml:" in issue


@pytest.mark.parametrize(
    ("kind", "labels", "unknown"),
    [
        (NER, ["PER"], "LOC"),
        (CLASSES, ["good", "bad"], "fair"),
        (TOPICS, ["train", "rain"], "letter"),
        (RELATIONS, ["Other", "left(e1,e2)"], "was-in(e2,e1)"),
    ],
)
def test_unlisted_label_is_reported_for_each_split(errors_of, kind, labels, unknown):
    errors = errors_of(kind, KINDS[kind][1], SPLITS, task={"labels": labels})
    for split, issue in zip(SPLITS, errors, strict=True):
        assert f"label '{unknown}' occurs in {split} (" in issue
    assert all("but not in task.labels." in issue for issue in errors)


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [
        (NER, "tokens", "token"),
        (CLASSES, "text", "texts"),
        (TOPICS, "labels", "lables"),
        (RATING, "label", "lable"),
        (ANSWERS, "context", "contxt"),
        (RELATIONS, "label", "lable"),
    ],
)
def test_wrong_column_name_is_reported_once_with_suggestion(errors_of, kind, ours, theirs):
    rows = [{theirs if name == ours else name: value for name, value in row.items()} for row in KINDS[kind][1]]
    found = ", ".join(rows[0])
    errors = errors_of(kind, rows, SPLITS)
    assert [issue.partition(" ")[0] for issue in errors] == [
        "train.jsonl:1",
        "validation.jsonl:1",
        "test.jsonl:1",
    ]
    for issue in errors:
        assert " and every other row: expected column" in issue
        assert f"; found {found}." in issue
        assert f" Is '{theirs}' the {ours}? Map yours under data.columns, our name first, as in " in issue
        assert issue.endswith(f"'{ours}: {theirs}' (--column {ours}={theirs}).")
    assert errors_of(kind, rows, SPLITS, data={"columns": {ours: theirs}}) == []


@pytest.mark.parametrize("kind", [NER, CLASSES, TOPICS, RELATIONS])
def test_labels_are_not_unknown_without_readable_training_rows(errors_of, kind):
    [issue] = errors_of(kind, [{"no": 1, "yes": 2}] * 9)
    assert issue.startswith("train.jsonl:1 and every other row: expected columns ")


def test_wrong_column_name_is_reported_once_across_random_splits(errors_of):
    rows = [{"txt": row["text"], "label": row["label"]} for row in KINDS[CLASSES][1]]
    errors = errors_of(CLASSES, rows, data={"validation": 0.2, "test": 0.2})
    assert len(errors) == 1, errors


def test_five_bad_rows_are_reported_and_rest_counted(errors_of):
    errors = errors_of(RATING, [*KINDS[RATING][1], *({"text": "x", "label": f"no {n}"} for n in range(8))])
    assert errors[:5] == [f"train.jsonl:{13 + n}: expected label to be a number, found 'no {n}'" for n in range(5)]
    assert errors[5:] == ["… and 3 more rows like these."]


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        (NER, [{"tokens": ["a"], "tags": ["O"]}] * 3, "the training rows hold no entity."),
        (CLASSES, [{"text": "x", "label": "a"}] * 3, "the training rows hold 1 label(s): a; nothing to tell apart."),
        (TOPICS, [{"text": "x", "labels": []}] * 3, "the training rows hold 0 label(s): none; nothing to tell apart."),
        (RATING, [{"text": "x", "label": 3}] * 3, "every training row says 3; there is nothing to learn."),
        (ANSWERS, [{**ASKED, "answers": []}] * 3, "no training row has an answer."),
        (RELATIONS, [SPANS] * 3, "the training rows hold 1 relation(s); nothing to tell apart."),
    ],
)  # fmt: skip
def test_rows_without_training_signal_are_refused(errors_of, kind, rows, expected):
    [issue] = errors_of(kind, rows, SPLITS)
    assert issue.endswith(f"data.train: {expected}")


def test_unused_negative_label_is_reported(errors_of):
    [issue] = errors_of(RELATIONS, KINDS[RELATIONS][1], task={"negative_label": "other"})
    assert "task.negative_label: no training row has the label 'other'. Did you mean 'Other'?" in issue


@pytest.mark.parametrize("start", [0, 8, "0", " 8 "])
def test_answer_start_at_first_character_is_accepted(errors_of, start):
    rows = []
    for row in KINDS[ANSWERS][1]:
        [answer] = row["answers"]
        asked = {name: row[name] for name in ("question", "context")}
        rows.append({**asked, "answer": answer["text"], "answer_start": answer["answer_start"]})
    assert errors_of(ANSWERS, [*rows, {**ASKED, "answer": "Ada", "answer_start": start}]) == []


def test_wrong_answer_start_at_first_character_is_refused(errors_of):
    row = {"question": "x", "context": "She met Ada", "answer": "Ada", "answer_start": 0}
    [issue] = errors_of(ANSWERS, [{**row, "answer_start": 8}, row])
    assert issue.startswith("train.jsonl:2: expected 'Ada' at character 0 of the context (0 to 11); it occurs at 8")


def test_tokens_with_text_comment_are_read_as_tokens(errors_of, tmp_path):
    """CoNLL-U writes `# text = …` above each sentence."""
    lines = "# text = Ada left Rome\n# label = {}\nAda\tB-head\nleft\tO\nRome\tB-tail\n\n"
    (tmp_path / "rows.conll").write_text(lines.format("left(e1,e2)") + lines.format("Other"))
    files = dict.fromkeys(SPLITS, "rows.conll")
    assert errors_of(RELATIONS, [], data=files) == []


# --- every task end to end


OPTIONS = {
    "entities": ({}, {"unit": "word"}),
    "characters": ({}, {"unit": "character"}),
    "classes": ({"multi_label": False, "threshold": "auto"}, {}),
    "topics": ({"multi_label": True, "threshold": 0.3}, {}),
    "rating": ({}, {"mean": 17 / 6, "deviation": pytest.approx(1.37437, abs=1e-5), "least": 1.0, "most": 5.0}),
    "answers": ({"doc_stride": 8, "max_answer_length": 6}, {"null_threshold": None}),
    "relations": ({"negative_label": "Other"}, {}),
}
SCORES = {
    "entities": ["precision", "recall", "f1"],
    "characters": ["precision", "recall", "f1"],
    "classes": ["accuracy", "macro_f1", "micro_f1", "matthews"],
    "topics": ["micro_f1", "macro_f1", "accuracy"],
    "rating": ["pearson", "spearman", "rmse", "mae"],
    "answers": ["exact", "f1"],
    "relations": ["precision", "recall", "f1", "accuracy"],
}
READING = {
    "entities": "A word's tag is read at its first token",
    "topics": "A label is given where its probability, the sigmoid of its logit, reaches 0.3. Probabil",
    "rating": "In the unit of the data, a value is logit × 1.37437 + 2.83333.",
    "answers": "Every question has an answer: the best span of the context.",
    "relations": "Spans are marked in the text: ",
}
COMMANDS = {
    "entities": '"Your text"',
    "classes": '"Your text"',
    "rating": '"Your text"',
    "answers": '"Your question" --context "The text that may hold the answer"',
    "relations": '"<e1>Ada Okafor</e1> founded <e2>Solwind</e2>."',
}


@pytest.fixture(params=KINDS)
def published(request, task_store):  # noqa: F811
    return Store(task_store).verify(request.param)


def test_manifest_holds_task_and_fitted_labels(published):
    task, (section, rows) = published.manifest.task, KINDS[published.name]
    options, state = OPTIONS[published.name]
    assert task.type == section["type"]
    assert task.options == options
    assert {key: value for key, value in task.state.items() if key != "temperature"} == state
    assert task.auto_class == task.build().head.auto_class
    assert len(task.head_labels) == {"entities": 5, "characters": 3, "rating": 1, "answers": 2}.get(published.name, 3)
    assert published.manifest.data.ledger["train"].used == len(rows)


def test_manifest_holds_task_scores(published):
    scores = published.manifest.scores
    assert list(scores) == ["validation", "test"]
    for split in scores.values():
        assert list(split.values) == SCORES[published.name]
        assert bool(split.confusion) == (published.name in ("classes", "relations"))
        assert bool(split.by_label) == (published.name != "rating")
    assert published.manifest.main_score in SCORES[published.name]


def test_confusion_matrix_is_drawn_if_task_has_one(published):
    drawn = (published.folder / "confusion.png").is_file()
    assert drawn == (published.name in ("classes", "relations"))
    assert ("confusion.png" in published.manifest.files) == drawn
    card = (published.folder / "README.md").read_text(encoding="utf8")
    assert ("![Confusion of labels, test](confusion.png)" in card) == drawn
    if drawn:
        assert (published.folder / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_model_card_contains_labels_output_help_and_command(published):
    card, task = (published.folder / "README.md").read_text(encoding="utf8"), published.manifest.task
    labels = f"Labels: {', '.join(f'`{label}`' for label in task.labels)}"
    assert (labels in card) == bool(task.labels)
    assert READING.get(published.name, "") in card
    command = COMMANDS.get(published.name, '"Your text"')
    assert f"peftlab predict {published.name} {command}\n" in card
    assert f"from transformers import {'AutoModel' if task.pooling else task.auto_class}\n" in card
    assert "None" not in card


def test_model_card_command_runs(published, task_store):  # noqa: F811
    card = (published.folder / "README.md").read_text(encoding="utf8")
    [line] = [line for line in card.splitlines() if line.startswith("peftlab predict ")]
    assert run(*shlex.split(line)[1:], "--store", task_store, "--device", "cpu").exit_code == 0


def test_adapter_recipe_matches_task(published):
    task = YAML(typ="safe").load(published.folder / "recipe.yaml")["task"]
    assert task.items() >= KINDS[published.name][0].items()


def test_plain_peft_matches_bank_logits(published, task_store, tiny_base):  # noqa: F811
    rows, model = KINDS[published.name][1][:5], model_of_card(published.folder)
    bank = peftlab.load(*KINDS, store=task_store, device="cpu")
    bank.predict([{"text": "<e1>a</e1> <e2>b</e2>"}], adapters="relations")
    task = bank.task(published.name)
    tokenizer = load_tokenizer(BaseFiles("x", tiny_base, "local folder"))
    examples = [task.read_input(Row(row, "x")) for row in rows]
    features = [
        feature
        for example in examples
        for feature in task.encode([example], TextInputs(tokenizer), 64, training=False)[0]
    ]
    bank.predict_examples(published.name, examples)  # switches it on
    plain = forward(task, model, TextInputs(tokenizer), features)
    inside = forward(task, bank.model(published.name), TextInputs(tokenizer), features)
    assert len(plain) >= 5
    assert all(torch.equal(one, other) for one, other in zip(plain, inside, strict=True))


# --- training options that came with the tasks


class Stopping(Progress):
    """Sends Ctrl-C after a step, and remembers which steps it saw."""

    def __init__(self, at=None):
        self.at, self.steps = at, []

    def on_step_end(self, step, loss):
        if loss is None:
            self.steps.append(step)
            if step == self.at:
                os.kill(os.getpid(), signal.SIGINT)


def weights(adapter):
    return load_file(adapter.folder / "adapter_model.safetensors")


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_bfloat16_steps_keep_float32_weights(tmp_path, tiny_base):
    recipe = recipe_for(tmp_path, tiny_base, "topics")
    plain = tune(recipe, store=tmp_path / "store", overrides={"training.bf16": False})
    halved = tune(recipe, store=tmp_path / "store", overrides={"training.bf16": True})
    assert {tensor.dtype for tensor in weights(halved.adapter).values()} == {torch.float32}
    assert not equal(weights(plain.adapter), weights(halved.adapter))
    for name, tensor in weights(plain.adapter).items():
        assert torch.allclose(weights(halved.adapter)[name], tensor, atol=0.05)


@pytest.mark.parametrize("strategy", ["tokens", "random"])
def test_resumed_run_matches_uninterrupted_run(tmp_path, tiny_base, strategy):
    training = {"train_sampling_strategy": strategy, "num_train_epochs": 3, "early_stopping_patience": None}
    recipe = recipe_for(tmp_path, tiny_base, "classes", training=training)
    straight = tune(recipe, store=tmp_path / "straight")
    with pytest.raises(TuningInterrupted, match="after step 5 of 9"):
        tune(recipe, store=tmp_path / "store", progress=Stopping(at=5))
    listener = Stopping()
    resumed = tune(recipe, store=tmp_path / "store", resume=True, progress=listener)
    assert listener.steps == [6, 7, 8, 9]
    assert equal(weights(straight.adapter), weights(resumed.adapter))
    assert resumed.scores == straight.scores
    other = {"tokens": "random", "random": "tokens"}[strategy]
    apart = tune(recipe, store=tmp_path / "store", overrides={"training.train_sampling_strategy": other})
    assert not equal(weights(straight.adapter), weights(apart.adapter))
