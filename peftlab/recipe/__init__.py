"""The recipe: its schema (one page), and reading one from YAML with every problem at once."""

from peftlab.recipe.reading import parse_override, read_recipe, recipe_yaml
from peftlab.recipe.schema import (
    BaseSection,
    DataSection,
    Head,
    Lora,
    MethodSection,
    QuestionAnswering,
    Recipe,
    Regression,
    RelationExtraction,
    TaskSection,
    TextClassification,
    TokenClassification,
    TrainingSection,
    bytes_in,
)

__all__ = [
    "BaseSection",
    "DataSection",
    "Head",
    "Lora",
    "MethodSection",
    "QuestionAnswering",
    "Recipe",
    "Regression",
    "RelationExtraction",
    "TaskSection",
    "TextClassification",
    "TokenClassification",
    "TrainingSection",
    "bytes_in",
    "parse_override",
    "read_recipe",
    "recipe_yaml",
]
