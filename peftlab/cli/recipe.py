"""`peftlab recipe show | schema`."""

import json
from pathlib import Path
from typing import Any

import click

from peftlab.cli.options import override_option
from peftlab.recipe import complete_schema, read_recipe, recipe_yaml


@click.group()
def recipe() -> None:
    """Look at a recipe, or at what a recipe can say."""


@recipe.command()
@click.argument("recipe_path", metavar="RECIPE")
@override_option
def show(recipe_path: str, overrides: dict[str, Any]) -> None:
    """Print RECIPE with every default filled in."""
    click.echo(recipe_yaml(read_recipe(recipe_path, overrides), Path(recipe_path).parent.absolute()), nl=False)


@recipe.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors that complete and check YAML."""
    click.echo(json.dumps(complete_schema().model_json_schema(), indent=2))
