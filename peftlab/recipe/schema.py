"""The whole recipe, on one page: every key a user can write, its type, default and meaning.

Names inside `method` are PEFT's, names inside `training` are Transformers'. Unknown keys are refused, types are not
coerced.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]


def _named_once(labels: list[str]) -> list[str]:
    if len(set(labels)) < len(labels) or not all(labels):
        raise ValueError("should be names, each given once")
    return labels


def _adapter_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,62}", name):
        raise ValueError("should be 2 to 63 lower-case letters, digits and dashes, and not begin with a dash")
    return name


Labels = Annotated[list[str], Field(min_length=1), AfterValidator(_named_once)]
AdapterName = Annotated[str, AfterValidator(_adapter_name)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class BaseSection(Section):
    model: str
    """Hub id, local folder, or a model that an installed package carries."""
    revision: str | None = None
    """Hub branch, tag or commit; null takes the main branch."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off unless you have read that code."""


class TokenClassification(Section):
    """Entities and other labelled spans of words."""

    type: Literal["token-classification"]
    labels: Labels | None = None
    """Entity types, in order; null takes those found in the training rows."""
    tag_scheme: Literal["auto", "iob1", "iob2", "iobes"] = "auto"
    """How `tags` in the data mark entities; auto looks at each split."""


class TextClassification(Section):
    """One label, or any number of labels, for a text or a pair of texts."""

    type: Literal["text-classification"]
    labels: Labels | None = None
    """Class names, in order, also what numbers in the data stand for; null takes those found in the training rows."""
    multi_label: bool = False
    """A row has a list of labels, which may be empty, instead of exactly one."""
    threshold: Share = 0.5
    """With multi_label: the probability from which on a label is given."""
    class_weights: Literal["balanced"] | None = None
    """balanced weighs each class by the inverse of its frequency in training."""


class Regression(Section):
    """A number for a text or a pair of texts."""

    type: Literal["regression"]
    loss: Literal["mse", "mae"] = "mse"
    """Squared error, or absolute error, which outliers move less."""


class QuestionAnswering(Section):
    """The span of a context that answers a question, or none."""

    type: Literal["question-answering"]
    doc_stride: Positive = 128
    """Tokens that one window of a long context shares with the next."""
    max_answer_length: Positive = 30
    """Longest answer, in tokens, that is looked for."""


class RelationExtraction(Section):
    """The relation between two marked spans of a text."""

    type: Literal["relation-extraction"]
    labels: Labels | None = None
    """Relations, in order; null takes those found in the training rows."""
    negative_label: str | None = None
    """The label that says there is no relation, left out of the scores; null takes Other, no_relation, NA or none."""


TaskSection = Annotated[
    TokenClassification | TextClassification | Regression | QuestionAnswering | RelationExtraction,
    Field(discriminator="type"),
]


class Lora(Section):
    type: Literal["lora"] = "lora"
    r: Positive = 8
    """Rank of the update."""
    lora_alpha: Positive = 16
    """The update is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with use_rslora)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names, or ends of names, of the layers to adapt; all-linear takes every Linear of the base, never the head."""
    use_rslora: bool = False
    use_dora: bool = False


class DataSection(Section):
    train: str
    """File, relative to the recipe; with `dataset`, the name of a split."""
    validation: str | Share = 0.1
    """File or split; a number is the share carved out of the training rows."""
    test: str | Share | None = None
    """File or split; a number is the share carved out of the training rows; null skips the final test."""
    dataset: str | None = None
    """Hub id, or a local folder, that `datasets` loads; train, validation and test then name its splits."""
    subset: str | None = None
    """Configuration of that Hub dataset."""
    format: Literal["auto", "jsonl", "json", "squad", "conll", "markup", "csv", "tsv", "parquet"] = "auto"
    """File format; auto goes by the file's ending, then by its first lines."""
    header: Labels | None = None
    """Column names of csv and tsv files that have no header line of their own."""
    encoding: str = "utf-8"
    """Encoding of text files, such as latin-1."""
    columns: dict[str, str] = {}
    """Our column name → the name in your files, as in `tokens: words`."""
    seed: int = 13
    """Seed of the carving."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Longest training input in tokens, special ones included; null takes what the base allows. Longer rows are cut."""
    max_lost: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of rows or entities that may be lost to dropping and cutting before the run is refused."""


class TrainingSection(Section):
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    num_train_epochs: Positive = 10
    per_device_train_batch_size: Positive = 16
    per_device_eval_batch_size: Positive = 32
    gradient_accumulation_steps: Positive = 1
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    bf16: bool = False
    """Compute training steps in bfloat16, where the device is faster at it; weights stay in fp32."""
    distributed: Literal["ddp", "fsdp", "deepspeed"] | None = None
    """How several processes share the work: each holds the whole base (ddp), or a part of it (fsdp, deepspeed).

    null takes ddp wherever `--launch` starts several.
    """
    group_by_length: bool = False
    """Put rows of about the same length into a batch, so that little is padded."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seeds the head, dropout and row order."""
    early_stopping_patience: Positive | None = 5
    """Stop after so many epochs without a better validation score, once that is above 0; null never stops early."""


class Recipe(Section):
    """What the user asks for: a base, a task, a method, data and training."""

    name: AdapterName
    """Name of the adapter: lower-case letters, digits and dashes."""
    base: BaseSection
    task: TaskSection
    method: Lora = Lora()
    data: DataSection
    training: TrainingSection = TrainingSection()
