"""`peftlab recipe show | schema`."""

import json
from pathlib import Path
from typing import Any

import click

from peftlab.cli.help_layout import Command, Group, argument
from peftlab.cli.options import override_option
from peftlab.recipe import complete_schema, read_recipe, recipe_yaml


@click.group(cls=Group, sections={"Commands": ["show", "schema"]}, example="peftlab recipe show recipes/ner-lora.yaml")
def recipe() -> None:
    """Show a recipe or the schema of recipes."""


@recipe.command(cls=Command, example="peftlab recipe show recipes/ner-lora.yaml -o method.r=16 > ner-r16.yaml")
@argument("recipe_path", metavar="RECIPE", description="Recipe, a YAML file.")
@override_option
def show(recipe_path: str, overrides: dict[str, Any]) -> None:
    """Print a recipe with all defaults filled in."""
    click.echo(recipe_yaml(read_recipe(recipe_path, overrides), Path(recipe_path).parent.absolute()), nl=False)


@recipe.command(cls=Command, example="peftlab recipe schema > recipe.schema.json")
def schema() -> None:
    """Print the JSON Schema of recipes.

    Editors use it to complete and check YAML files.
    """
    click.echo(json.dumps(complete_schema().model_json_schema(), indent=2))
