"""The whole recipe: every key a user can write, its type, default and meaning; tasks and methods in files beside.

Names inside `method` are PEFT's, names inside `training` are Transformers'. Unknown keys are refused, types are not
coerced.
"""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from peftlab.recipe.methods import Lora, MethodSection
from peftlab.recipe.tasks import TaskSection
from peftlab.recipe.types import AdapterName, ByteSize, Fraction, Labels, PositiveInt, Quantization, Section

Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
Optimizer = Literal[
    "adamw_torch_fused", "adamw_torch", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "adafactor", "adagrad", "rmsprop", "sgd", "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit",
]  # fmt: skip
SHARDING = ("fsdp", "deepspeed")


class BaseSection(Section):
    model: str
    """Hub id, local folder, or a model that an installed package carries."""
    revision: str | None = None
    """Hub branch, tag or commit; null takes the main branch."""
    quantization: Quantization | None = None
    """Hold the frozen base in 8bit (LLM.int8) or 4bit (NF4) instead of fp32: less memory, slower steps."""
    attn_implementation: Attention | None = None
    """Which of Transformers' attention kernels computes; null takes the fastest that is there."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off unless you have read that code."""


class DataSection(Section):
    train: str
    """File, relative to the recipe; with `dataset`, the name of a split. `train.{en,de}` are two files whose lines are
    texts and their translations."""
    validation: str | Fraction = 0.1
    """File or split; a number is the share carved out of the training rows."""
    test: str | Fraction | None = None
    """File or split; a number is the share carved out of the training rows; null skips the final test."""
    dataset: str | None = None
    """Hub id, or a local folder, that `datasets` loads; train, validation and test then name its splits."""
    subset: str | None = None
    """Configuration of that Hub dataset."""
    format: Literal[
        "auto", "jsonl", "json", "squad", "conll", "markup", "text", "paragraphs", "csv", "tsv", "parquet"
    ] = "auto"
    """File format; auto goes by the file's ending, then by its first lines. text has a row a line, paragraphs one up to
    each blank line."""
    header: Labels | None = None
    """Column names of csv and tsv files that have no header line of their own."""
    encoding: str = "utf-8"
    """Encoding of text files, such as latin-1."""
    columns: dict[str, str] = {}
    """Our column name → the name in your files, as in `tokens: words`, or `text: translation.en` for what is inside a
    column."""
    seed: int = 13
    """Seed of the carving."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Longest training input in tokens, special ones included; null takes what the base allows. Longer rows are cut."""
    max_lost: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of rows or entities that may be lost to dropping and cutting before the run is refused."""


class TrainingSection(Section):
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """null takes what suits the method; see `Method.default_learning_rate`."""
    num_train_epochs: PositiveInt = 10
    per_device_train_batch_size: PositiveInt = 16
    per_device_eval_batch_size: PositiveInt = 32
    gradient_accumulation_steps: PositiveInt = 1
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    optim: Optimizer = "adamw_torch_fused"
    """Transformers' name of the optimizer. Those in 8bit hold their state of large tensors in bytes, paged ones move it
    out of a GPU that is full."""
    gradient_checkpointing: bool = False
    """Keep only what enters each layer and compute the rest again going backward: less memory, slower steps."""
    train_sampling_strategy: Literal["tokens", "random"] = "tokens"
    """tokens puts rows of about the same length into batches of about the same number of tokens, of as many rows on
    average as the batch size says; random takes rows as they come."""
    packing: bool = False
    """causal-lm, as task or objective: put several texts into one row of a batch, each as if it stood alone, instead of
    padding them."""
    bf16: bool | None = None
    """Compute training steps in bfloat16, though what trains stays in fp32; null does where the device is faster so."""
    fp16: bool | None = None
    """The same in float16 with a scaled loss, on CUDA; null does where there is no bfloat16."""
    fused_lora: bool | None = None
    """Compute LoRA layers by our own fused function instead of PEFT's; null does where it is faster, on CPUs."""
    torch_compile: bool = False
    """Have torch.compile make kernels of the base's layers in the place of our own functions: minutes of compiling, for
    steps that `peftlab bench tuning --compile` compares."""
    base_dropout: bool = True
    """Leave the base's own dropout on while training."""
    distributed: Literal["ddp", "fsdp", "deepspeed"] | None = None
    """How several processes share the work: each holds the whole base (ddp), or a part of it (fsdp, deepspeed).

    null takes ddp wherever `--launch` starts several.
    """
    seed: Annotated[int, Field(ge=0)] = 42
    """Seeds the head, dropout and row order."""
    early_stopping_patience: PositiveInt | None = 5
    """Stop after so many epochs without a better validation score, once that is above 0; null never stops early."""
    frozen_cache: ByteSize | None = "2GiB"
    """Disk space for what the layers below the lowest adapted one make of each row: computed once instead of in every
    epoch, with the same result to rounding. Where it is not enough, that is said; null never keeps any. In either case
    these layers run without dropout."""

    @field_validator("fp16")
    @classmethod
    def _check_one_precision(cls, fp16: bool | None, info: ValidationInfo) -> bool | None:
        if fp16 and info.data.get("bf16"):
            raise ValueError("should not be true beside bf16")
        return fp16


class Recipe(Section):
    """What the user asks for: a base, a task, a method, data and training."""

    name: AdapterName
    """Name of the adapter: lower-case letters, digits and dashes."""
    base: BaseSection
    task: TaskSection
    method: MethodSection = Lora()
    data: DataSection
    training: TrainingSection = Field(TrainingSection(), validate_default=True)

    @field_validator("training")
    @classmethod
    def _set_default_learning_rate(cls, training: TrainingSection, info: ValidationInfo) -> TrainingSection:
        """A recipe that is written down says its learning rate, whatever a later version takes."""
        if training.learning_rate is not None or "method" not in info.data:
            return training
        return training.model_copy(update={"learning_rate": info.data["method"].default_learning_rate})
