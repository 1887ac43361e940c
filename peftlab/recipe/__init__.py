"""The recipe: its schema, and a YAML reader that reports all errors at once."""

from peftlab.recipe.compatibility import contrastive_conflict
from peftlab.recipe.extended_schema import complete_schema, parse_method
from peftlab.recipe.method import Limits, Method, MethodInfo
from peftlab.recipe.methods import (
    AdaLora,
    BitFit,
    Bottleneck,
    Full,
    Head,
    Ia3,
    LastLayers,
    LnTuning,
    Lora,
    MethodSection,
    Prefix,
    Prompt,
    PTuning,
)
from peftlab.recipe.peft_methods import PEFT_METHODS, UNSUPPORTED_PEFT_METHODS, PeftMethod
from peftlab.recipe.plugins import METHOD_PLUGINS, TASK_PLUGINS, Registry
from peftlab.recipe.reading import parse_override, read_recipe, recipe_yaml
from peftlab.recipe.schema import AUTO, SHARDING, BaseSection, DataSection, Recipe, TrainingSection
from peftlab.recipe.tasks import (
    DomainAdaptation,
    Generation,
    QuestionAnswering,
    Regression,
    RelationExtraction,
    TaskSection,
    TextClassification,
    TokenClassification,
)
from peftlab.recipe.types import HeadPooling, Pooling, Quantization, parse_byte_size

__all__ = [
    "AUTO",
    "METHOD_PLUGINS",
    "PEFT_METHODS",
    "SHARDING",
    "TASK_PLUGINS",
    "UNSUPPORTED_PEFT_METHODS",
    "AdaLora",
    "BaseSection",
    "BitFit",
    "Bottleneck",
    "DataSection",
    "DomainAdaptation",
    "Full",
    "Generation",
    "Head",
    "HeadPooling",
    "Ia3",
    "LastLayers",
    "Limits",
    "LnTuning",
    "Lora",
    "Method",
    "MethodInfo",
    "MethodSection",
    "PTuning",
    "PeftMethod",
    "Pooling",
    "Prefix",
    "Prompt",
    "Quantization",
    "QuestionAnswering",
    "Recipe",
    "Registry",
    "Regression",
    "RelationExtraction",
    "TaskSection",
    "TextClassification",
    "TokenClassification",
    "TrainingSection",
    "complete_schema",
    "contrastive_conflict",
    "parse_byte_size",
    "parse_method",
    "parse_override",
    "read_recipe",
    "recipe_yaml",
]
