"""`check` says that a recipe can be tuned exactly if `tune` then tunes it: 300 recipes and data sets with mistakes."""

from functools import partial

import pytest

import peftlab
from peftlab.errors import PeftlabError, TuningDiverged
from tests.tuning.mutations import Mutations

COUNT = 300
IN_SHORT = 24


@pytest.fixture(scope="module")
def mutations(tmp_path_factory):
    return Mutations(tmp_path_factory.mktemp("bases"))


def marked(number):
    return pytest.param(number, marks=() if number < IN_SHORT else pytest.mark.whole_matrix)


@pytest.mark.parametrize("number", [marked(number) for number in range(COUNT)])
def test_check_and_tune_agree(mutations, tmp_path, number):
    recipe, odd = mutations.write(number, tmp_path / "mutated")
    said, done = verdict(peftlab.check, recipe, tmp_path), verdict(tune, recipe, tmp_path)
    assert said == done, f"{odd}: check says {said!r}, tune {done!r}"


tune = partial(peftlab.tune, publish_anyway=True)


def verdict(command, recipe, folder):
    """None, or the refusal; any other error than a refusal is raised."""
    try:
        result = command(recipe, store=folder / "store", device="cpu")
    except TuningDiverged:
        return None  # nobody knows before
    except PeftlabError as error:
        return str(error)
    return getattr(result, "missing", "") or None  # `check` says that a base is missing, and does not refuse the rest
