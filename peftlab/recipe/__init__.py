"""The recipe: its schema, and reading one from YAML with every problem at once."""

from peftlab.recipe.kinds import bytes_in
from peftlab.recipe.methods import (
    AdaLora,
    BitFit,
    Bottleneck,
    Full,
    Head,
    Ia3,
    LastLayers,
    Lora,
    MethodSection,
    OtherMethod,
    Prefix,
    Prompt,
    PTuning,
)
from peftlab.recipe.reading import parse_override, read_recipe, recipe_yaml
from peftlab.recipe.schema import SHARDING, BaseSection, DataSection, Quantization, Recipe, TrainingSection
from peftlab.recipe.tasks import (
    PLAIN_TEXT_TASKS,
    DomainAdaptation,
    Generation,
    QuestionAnswering,
    Regression,
    RelationExtraction,
    TaskSection,
    TextClassification,
    TokenClassification,
)
from peftlab.recipe.together import REFUSED_ON, refusal

__all__ = [
    "PLAIN_TEXT_TASKS",
    "REFUSED_ON",
    "SHARDING",
    "AdaLora",
    "BaseSection",
    "BitFit",
    "Bottleneck",
    "DataSection",
    "DomainAdaptation",
    "Full",
    "Generation",
    "Head",
    "Ia3",
    "LastLayers",
    "Lora",
    "MethodSection",
    "OtherMethod",
    "PTuning",
    "Prefix",
    "Prompt",
    "Quantization",
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
    "refusal",
]
