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
    "TuningInterrupted": ("PeftlabError", 130),
}


@pytest.mark.parametrize(("name", "parent", "code"), [(name, *facts) for name, facts in TREE.items()])
def test_each_error_has_its_parent_and_exit_code(name, parent, code):
    error = getattr(errors, name)
    assert error.__base__.__name__ == parent
    assert error.exit_code == code


def test_the_tree_holds_every_error_of_the_module_and_the_docstring_shows_them_all():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert defined == set(TREE)
    for name, (_, code) in TREE.items():
        line = next(line for line in errors.__doc__.splitlines() if f" {name}" in f" {line}".replace("─", " "))
        told = [word for word in line.split() if word.isdigit()]
        assert told in ([str(code)], [])


@pytest.mark.parametrize(
    ("name", "meant"),
    [("lerning_rate", "learning_rate"), ("ALPHA", "alpha"), ("alhpa", "alpha"), ("Learning_Rate", "learning_rate")],
)
def test_a_typo_gets_the_nearest_name_whatever_its_case(name, meant):
    assert nearest(name, ["alpha", "learning_rate", "seed"]) == meant


def test_the_nearest_name_keeps_its_own_spelling():
    assert nearest("per", ["PER", "Loc"]) == "PER"
    assert nearest("LOC", ["PER", "Loc"]) == "Loc"


@pytest.mark.parametrize("known", [["alpha", "seed"], []])
def test_a_name_far_from_all_others_has_no_nearest(known):
    assert nearest("xyzzy", known) is None


@pytest.mark.parametrize(
    ("name", "known", "sentence"),
    [
        ("loar", ["prefix", "lora"], "Did you mean 'lora'? Known: lora, prefix."),
        ("zzz", ["prefix", "lora"], "Known: lora, prefix."),
        ("zzz", [], "Known: none."),
    ],
)
def test_a_suggestion_names_the_nearest_first_and_then_all_in_order(name, known, sentence):
    assert suggest(name, known) == sentence


def test_a_suggestion_says_what_it_lists():
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
def test_a_problem_reads_place_key_message_hint(issue, line):
    assert str(issue) == line


def test_problems_are_raised_all_at_once_in_the_order_found():
    def check():
        with ErrorCollector() as errors:
            errors.add("first.")
            errors.add("second.", where="f:2", hint="Mend it.")

    with pytest.raises(RecipeError) as caught:
        check()
    assert str(caught.value) == "2 problems\n  first.\n  f:2: second. Mend it."
    assert [issue.message for issue in caught.value.errors] == ["first.", "second."]


def test_one_problem_is_told_in_the_singular():
    with pytest.raises(RecipeError) as caught, ErrorCollector() as errors:
        errors.add("only.")
    assert str(caught.value) == "1 problem\n  only."


def test_no_problem_raises_nothing():
    with ErrorCollector() as errors:
        errors.raise_if_any()
    assert errors.issues == []


def test_stop_raises_what_was_found_so_far():
    errors = ErrorCollector()
    errors.add("first.")
    with pytest.raises(RecipeError, match="first"):
        errors.raise_if_any()


def test_another_error_is_not_hidden_by_problems():
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
def test_a_place_falls_back_to_the_nearest_section_around_it(key, place):
    errors = ErrorCollector(locations={"": "r.yaml", "data": "r.yaml:3", "data.train": "r.yaml:4"})
    assert errors.location(key) == place
    errors.add("wrong.", key=key)
    assert errors.issues[0].where == place


def test_a_place_that_nobody_wrote_is_empty():
    assert ErrorCollector().location("data.train") == ""


def test_a_place_given_outright_wins_over_that_of_the_key():
    errors = ErrorCollector(locations={"data": "r.yaml:3"})
    errors.add("wrong.", key="data", where="train.txt:7")
    assert str(errors.issues[0]) == "train.txt:7  data: wrong."


def test_a_suggestion_among_very_many_lists_the_first_few():
    names = [f"name{number:02}" for number in range(20)]
    assert suggest("zzz", names).endswith("name13, name14 and 5 more.")
