"""A method that another installed package brings by an entry point: one file, and peftlab is not changed."""

import json
import os
import subprocess
import sys

import pytest

import peftlab
from peftlab.errors import PluginError, RecipeError
from peftlab.methods import METHODS
from peftlab.recipe import parse_method, read_recipe
from tests.plugins import install_plugin
from tests.runtime.test_routing import TOLERANCE, mixed_rows_differ
from tests.task_stores import recipe_for, run

SOURCE = '''
"""Output scaling: one trained factor for each output of chosen Linear layers."""

from typing import ClassVar, Literal

import torch
from peft import IA3Config

from peftlab.methods import MethodRecord, TrainingHooks
from peftlab.methods.target_modules import list_linear_layers, match_names
from peftlab.errors import ErrorCollector
from peftlab.recipe import Limits, Method, MethodInfo

LOSSES = []


class OutputScaling(Method):
    """One trained factor for each output of chosen Linear layers."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=3e-2,
        limits=(Limits(quantization={"4bit": "nobody has tried it"}),),
        card_note="It scales outputs.",
    )
    type: Literal["output-scaling"]
    target_modules: list[str] = ["query"]
    """Names, or ends of names, of the Linear layers to scale."""
    decay: float = 0.0
    """Weight of the squared distance from 1 in the loss."""


def output_scaling_config(base, section, task):
    with ErrorCollector() as errors:
        targets = match_names(list_linear_layers(base), section.target_modules, errors)
    return IA3Config(target_modules=targets, feedforward_modules=[])


def distance_loss(model, section):
    factors = [p for name, p in model.named_parameters() if "ia3_l" in name]
    LOSSES.append(section.decay)
    return section.decay * torch.stack([(factor - 1).square().mean() for factor in factors]).sum()


record = MethodRecord(OutputScaling, output_scaling_config, TrainingHooks(loss=distance_loss))
'''
METHOD = {"type": "output-scaling", "decay": 0.01}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    points = {"peftlab.methods": {"output-scaling": "record"}}
    folder = install_plugin(tmp_path / "site", "output_scaling", SOURCE, points)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("output_scaling", None)


@pytest.fixture
def recipe(tiny_base, tmp_path):
    file = recipe_for(tmp_path / "rows", tiny_base, "classes")
    file.write_text(file.read_text().replace("method:\n  r: 4\n", ""))
    return file


def test_plugin_method_is_tuned_mixed_and_served(plugin, recipe, tmp_path):
    store = tmp_path / "store"
    peftlab.tune(recipe, overrides={"name": "scaled", "method": METHOD}, store=store, device="cpu")
    peftlab.tune(recipe, overrides={"name": "plain", "method": {"type": "lora"}}, store=store, device="cpu")
    assert set(sys.modules["output_scaling"].LOSSES) == {0.01}
    manifest = json.loads((store / "scaled" / "1" / "peftlab.json").read_text())
    assert manifest["method"] == "output-scaling"
    assert "It scales outputs." in (store / "scaled" / "1" / "README.md").read_text()
    bank = peftlab.load("scaled", "plain", store=store, device="cpu")
    assert bank.is_routed("scaled")
    assert mixed_rows_differ(bank, ["scaled", "plain"], rounds=10) <= TOLERANCE


def test_new_process_predicts_with_plugin_method(plugin, recipe, tmp_path):
    store = tmp_path / "store"
    peftlab.tune(recipe, overrides={"name": "scaled", "method": METHOD}, store=store, device="cpu")
    command = [sys.executable, "-m", "peftlab", "predict", "scaled", "nobody came .", "--store", str(store)]
    paths = os.pathsep.join([str(plugin), *filter(None, sys.path)])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method.type": "output-scalin"}, "method.type: unknown type 'output-scalin'. Did you mean 'output-scaling'?"),
        (
            {"method": {"type": "output-scaling", "decya": 1}},
            "method.decya: unknown key. Did you mean 'decay'? Keys here: decay, start_from, target_modules, type.",
        ),
        (
            {"method": {"type": "output-scaling", "decay": "much"}},
            "method.decay: should be a valid number, not 'much'.",
        ),
        (
            {"method": {"type": "output-scaling"}, "base.quantization": "4bit"},
            "'output-scaling' does not go with a base in 4bit: nobody has tried it. Take lora or 8bit",
        ),
    ],
)
def test_wrong_plugin_section_raises_recipe_error(plugin, recipe, overrides, message):
    with pytest.raises(RecipeError) as error:
        read_recipe(recipe, overrides)
    assert message in str(error.value)


def test_recipe_schema_lists_plugin_method(plugin):
    schema = json.loads(run("recipe", "schema").stdout)
    assert "output-scaling" in schema["properties"]["method"]["discriminator"]["mapping"]
    section = schema["$defs"]["OutputScaling"]
    assert section["description"] == "One trained factor for each output of chosen Linear layers."


def test_registry_lists_plugin_without_importing_it(plugin):
    assert "output-scaling" in list(METHODS)
    assert "output_scaling" not in sys.modules
    assert METHODS["output-scaling"].section.__name__ == "OutputScaling"
    section = parse_method(METHOD)
    assert (section.decay, section.default_learning_rate) == (0.01, 3e-2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "(broken:record) cannot be imported: ModuleNotFoundError: No module named 'no_such_"),
        ("record = 1", "(broken:record) should be a record whose section is a subclass of peftlab.recipe.method.Meth"),
        ("other = 1", "(broken:record) cannot be imported: AttributeError: module 'broken' has no attribute 'record'"),
        (
            "import peftlab.methods as methods\nrecord = methods.METHODS['head']",
            "(broken:record): its section should have the field type: Literal['broken'].",
        ),
    ],
)
def test_broken_plugin_raises_error_in_words(recipe, tmp_path, monkeypatch, source, message):
    points = {"peftlab.methods": {"broken": "record"}}
    monkeypatch.syspath_prepend(install_plugin(tmp_path / "site", "broken", source, points))
    with pytest.raises(RecipeError) as error:
        read_recipe(recipe, {"method.type": "broken", "trainig.seed": 1})
    sys.modules.pop("broken", None)
    assert f"method.type: the method 'broken' of the package 'broken' {message}" in str(error.value)
    assert "trainig: unknown key." in str(error.value)


def test_plugin_that_is_no_record_raises_plugin_error(tmp_path, monkeypatch):
    points = {"peftlab.methods": {"number": "record"}}
    monkeypatch.syspath_prepend(install_plugin(tmp_path / "site", "number_plugin", "record = 1", points))
    with pytest.raises(PluginError, match=r"\(number_plugin:record\) should be a MethodRecord, not int"):
        METHODS["number"]


def test_two_packages_with_one_method_raise_plugin_error(tmp_path, monkeypatch):
    points = {"peftlab.methods": {"twice": "record"}}
    for name in ("first_plugin", "second_plugin"):
        monkeypatch.syspath_prepend(install_plugin(tmp_path / name, name, "record = 1", points))
    with pytest.raises(PluginError, match="'twice' is provided by the packages 'first-plugin' and 'second-plugin'"):
        METHODS["twice"]
