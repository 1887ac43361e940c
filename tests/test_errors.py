import pytest

from peftlab import errors
from peftlab.errors import ErrorCollector, RecipeError, ValidationIssue, nearest, suggest

TREE = {
    "PeftlabError": ("Exception", 1),
    "RecipeError": ("PeftlabError", 2),
    "NotFoundError": ("PeftlabError", 3),
    "BaseNotFoundError": ("NotFoundError", 3),
    "DeviceNotFoundError": ("NotFoundError", 3),
    "PackageNotFoundError": ("NotFoundError", 3),
    "AdapterNotFoundError": ("NotFoundError", 3),
    "PluginError": ("PeftlabError", 1),
    "IntegrityError": ("PeftlabError", 4),
    "MemoryBudgetError": ("PeftlabError", 5),
    "StoreError": ("PeftlabError", 5),
    "ProcessLostError": ("PeftlabError", 6),
    "TuningDiverged": ("PeftlabError", 7),
    "NoBetterThanMajority": ("PeftlabError", 8),
    "TuningInterrupted": ("PeftlabError", 130),
}


@pytest.mark.parametrize(("name", "parent", "code"), [(name, *facts) for name, facts in TREE.items()])
def test_each_error_has_parent_and_exit_code(name, parent, code):
    error = getattr(errors, name)
    assert error.__base__.__name__ == parent
    assert error.exit_code == code


def test_docstring_lists_every_error():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert defined == set(TREE)
    for name, (_, code) in TREE.items():
        line = next(line for line in errors.__doc__.splitlines() if f" {name}" in f" {line}".replace("─", " "))
        result = [word for word in line.split() if word.isdigit()]
        assert result in ([str(code)], [])


@pytest.mark.parametrize(
    ("name", "meant"),
    [("lerning_rate", "learning_rate"), ("ALPHA", "alpha"), ("alhpa", "alpha"), ("Learning_Rate", "learning_rate")],
)
def test_nearest_ignores_case(name, meant):
    assert nearest(name, ["alpha", "learning_rate", "seed"]) == meant


def test_nearest_keeps_spelling():
    assert nearest("per", ["PER", "Loc"]) == "PER"
    assert nearest("LOC", ["PER", "Loc"]) == "Loc"


@pytest.mark.parametrize("known", [["alpha", "seed"], []])
def test_nearest_of_dissimilar_name_is_none(known):
    assert nearest("xyzzy", known) is None


@pytest.mark.parametrize(
    ("name", "known", "sentence"),
    [
        ("loar", ["prefix", "lora"], "Did you mean 'lora'? Known: lora, prefix."),
        ("zzz", ["prefix", "lora"], "Known: lora, prefix."),
        ("zzz", [], "Known: none."),
    ],
)
def test_suggest_lists_nearest_then_all_sorted(name, known, sentence):
    assert suggest(name, known) == sentence


def test_suggest_names_what_it_lists():
    assert suggest("x", {"b", "a"}, what="Keys here") == "Keys here: a, b."


@pytest.mark.parametrize(
    ("issue", "line"),
    [
        (ValidationIssue("broken."), "broken."),
        (ValidationIssue("broken.", where="f:3"), "f:3: broken."),
        (ValidationIssue("broken.", key="data.train"), "data.train: broken."),
        (ValidationIssue("broken.", "f:3", "data.train", "Mend it."), "f:3  data.train: broken. Mend it."),
    ],
)
def test_validation_issue_format(issue, line):
    assert str(issue) == line


def test_error_collector_raises_all_issues_in_order():
    def check():
        with ErrorCollector() as errors:
            errors.add("first.")
            errors.add("second.", where="f:2", hint="Mend it.")

    with pytest.raises(RecipeError) as caught:
        check()
    assert str(caught.value) == "2 problems\n  first.\n  f:2: second. Mend it."
    assert [issue.message for issue in caught.value.errors] == ["first.", "second."]


def test_recipe_error_with_one_issue_uses_singular():
    with pytest.raises(RecipeError) as caught, ErrorCollector() as errors:
        errors.add("only.")
    assert str(caught.value) == "1 problem\n  only."


def test_error_collector_without_issues_raises_nothing():
    with ErrorCollector() as errors:
        errors.raise_if_any()
    assert errors.issues == []


def test_raise_if_any_raises_recorded_issues():
    errors = ErrorCollector()
    errors.add("first.")
    with pytest.raises(RecipeError, match="first"):
        errors.raise_if_any()


def test_error_collector_does_not_hide_other_errors():
    def check():
        with ErrorCollector() as errors:
            errors.add("first.")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        check()


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("data.train", "r.yaml:4"),
        ("data.validation", "r.yaml:3"),
        ("data.columns.tokens", "r.yaml:3"),
        ("training.seed", "r.yaml"),
        ("", "r.yaml"),
    ],
)
def test_location_falls_back_to_enclosing_section(key, place):
    errors = ErrorCollector(locations={"": "r.yaml", "data": "r.yaml:3", "data.train": "r.yaml:4"})
    assert errors.location(key) == place
    errors.add("wrong.", key=key)
    assert errors.issues[0].where == place


def test_unknown_location_is_empty():
    assert ErrorCollector().location("data.train") == ""


def test_explicit_location_overrides_key_location():
    errors = ErrorCollector(locations={"data": "r.yaml:3"})
    errors.add("wrong.", key="data", where="train.txt:7")
    assert str(errors.issues[0]) == "train.txt:7  data: wrong."


def test_suggest_limits_listed_names():
    names = [f"name{number:02}" for number in range(20)]
    assert suggest("zzz", names).endswith("name13, name14 and 5 more.")
