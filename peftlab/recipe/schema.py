"""The schema of a recipe: all keys, with types, defaults and descriptions; `tasks` and `methods` are in their own
files.

Keys of `method` have PEFT's names, keys of `training` have those of Transformers. Unknown keys are errors, and types
are not coerced.
"""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from peftlab.recipe.methods import Lora, MethodSection
from peftlab.recipe.tasks import TaskSection
from peftlab.recipe.types import AdapterName, ByteSize, Fraction, Labels, Pooling, PositiveInt, Quantization, Section

AUTO = "auto"
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
Optimizer = Literal[
    "adamw_torch_fused", "adamw_torch", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "adafactor", "adagrad", "rmsprop", "sgd", "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit",
]  # fmt: skip
SHARDING = ("fsdp", "deepspeed")


class BaseSection(Section):
    model: str
    """Hub id, local folder, or a model that an installed package contains."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null uses the main branch."""
    quantization: Quantization | None = None
    """Load the frozen base in 8bit (LLM.int8) or 4bit (NF4) instead of fp32: this needs less memory, but steps are
    slower."""
    attn_implementation: Attention | None = None
    """Attention implementation in Transformers; null uses the fastest one that is available."""
    pooling: Pooling = "auto"
    """For tasks with one output per input: what the head reads. mean, max: the mean or maximum of all token states;
    last: the state of the last token; cls: whatever the architecture's own head reads, such as BERT's [CLS] token. auto
    takes what the base declares in 1_Pooling/config.json, as bases of Sentence Transformers do, else the architecture's
    own head; for relation-extraction it takes the states at the first marker of head and tail."""
    head: Literal["new", "checkpoint"] = "new"
    """new trains a new head, even if the checkpoint has one, such as a sentiment classifier's; checkpoint continues the
    checkpoint's own head, which must have the same labels."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository. Do not set this unless you have read that code."""


class DataSection(Section):
    train: str
    """File, relative to the recipe; with `dataset`, the name of a split. `train.{en,de}` means two files with parallel
    lines: the texts and their translations."""
    validation: str | Fraction | None = AUTO
    """File or split; a number is the fraction of the training rows that is split off for validation. auto splits off
    0.1 of 300 rows or more; fewer rows are all trained on, and the score is that of 4-fold cross-validation if the task
    has labels or numbers. null trains on all rows without validation."""
    test: str | Fraction | None = None
    """File or split; a number is the fraction of the training rows that is split off for the test; null means no
    test."""
    dataset: str | None = None
    """Hub id, or local folder, of a data set that `datasets` loads; train, validation and test are then names of its
    splits."""
    subset: str | None = None
    """Configuration name of `dataset`."""
    format: Literal[
        "auto", "jsonl", "json", "squad", "conll", "markup", "text", "paragraphs", "csv", "tsv", "parquet"
    ] = "auto"
    """File format; auto detects it from the file name, then from the first lines. text: each line is a row; paragraphs:
    blank lines separate the rows."""
    header: Labels | None = None
    """Column names for csv and tsv files without a header line, and for conll files whose columns are not found
    right, as in [id, tokens, tags]."""
    encoding: str = "utf-8"
    """Character encoding of the files, such as latin-1."""
    columns: dict[str, str] = {}
    """Column name of the task → name in your files, as in `tokens: words`, or `text: translation.en` for a nested
    field."""
    drop_blank: bool = False
    """Leave out, and count, rows without text or without a label (empty, null, `-` or `-1`); otherwise such rows are
    errors."""
    group_by: str | None = None
    """For tables with one word a row: the column that names the sentence; its rows become one row of lists. An empty
    cell continues the sentence before it."""
    seed: int = 13
    """Random seed for splitting off validation and test rows."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Maximum length of training inputs in tokens, including special tokens; null uses the maximum of the base. Longer
    rows are truncated."""
    max_lost: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Maximum fraction of rows, or of entities, that may be lost because rows are dropped or truncated; above it,
    training does not start."""


class TrainingSection(Section):
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; null chooses it: the usual one of the method, which some methods multiply for few training
    rows."""
    num_train_epochs: PositiveInt | None = None
    """Maximum number of epochs; the weights of the epoch with the best validation score are kept. null chooses the
    epochs that make 500 steps (300 if the learning rate is raised), at least 10 and at most 60; it chooses 10 for
    language models and generated texts."""
    max_steps: PositiveInt | None = None
    """Maximum number of optimizer steps, instead of a number of epochs; it may end within an epoch."""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the new head that the task adds to the base; null uses learning_rate."""
    freeze: list[str] = []
    """Modules whose parameters are not trained although the method would train them, as in [embeddings, layer.0]: names
    in the model, or parts of them between dots."""
    per_device_train_batch_size: PositiveInt = 16
    per_device_eval_batch_size: PositiveInt = 32
    gradient_accumulation_steps: PositiveInt = 1
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Fraction of the steps in which the learning rate rises linearly from 0; null chooses 0.1 where the learning rate
    is chosen above the usual one, else 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    head_init: Literal["auto", "probe", "random"] = "auto"
    """Start of a new head: probe, a linear probe fitted to states of the frozen base, or random weights. auto takes the
    probe with fewer than 50 training rows if each row has labels or a number, unless method.start_from is set."""
    few_shot: Literal["auto", "off", "contrastive"] = "auto"
    """Training for few rows per class. contrastive: the states of rows of the same class are pulled together, those of
    other classes apart, with the labels' names as further rows where they help; then the head is a linear probe on the
    states. auto chooses it for text-classification with one label per text, up to 16 rows per class (median), if
    num_train_epochs is null and method.start_from is not set."""
    optim: Optimizer = "adamw_torch_fused"
    """Name of the optimizer in Transformers. 8bit optimizers store the state of large tensors in 8 bits; paged
    optimizers move it to CPU memory if the GPU is full."""
    gradient_checkpointing: bool = False
    """Store only the inputs of each layer and recompute its activations in the backward pass: this needs less memory,
    but steps are slower."""
    train_sampling_strategy: Literal["tokens", "random"] = "tokens"
    """tokens: batches contain rows of similar length and about the same number of tokens; the batch size is the mean
    number of rows. random: rows are shuffled, and each batch has the same number of rows."""
    packing: bool = False
    """For causal-lm, as task or objective: pack several texts into one row of a batch instead of padding them; the
    texts do not attend to each other."""
    bf16: bool | None = None
    """Compute training steps in bfloat16; trainable parameters stay in fp32. null uses it if it is faster on this
    device."""
    fp16: bool | None = None
    """Compute training steps in float16 with loss scaling, on CUDA; null uses it if the GPU has no bfloat16."""
    fused_lora: bool | None = None
    """Compute LoRA layers by peftlab's fused function instead of PEFT's layers; null uses it where it is faster, on
    CPUs."""
    torch_compile: bool = False
    """Compile the layers of the base by torch.compile instead of using peftlab's own functions. Compilation takes
    minutes; `peftlab bench tuning --compile` compares the step times."""
    base_dropout: bool = True
    """Use the dropout of the base during training."""
    distributed: Literal["ddp", "fsdp", "deepspeed"] | None = None
    """Strategy for training with several processes: each keeps a full copy of the base (ddp), or a shard of it (fsdp,
    deepspeed). null uses ddp if `--launch` starts several processes."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Random seed for new weights, dropout and the order of rows."""
    early_stopping_patience: PositiveInt | Literal["auto"] | None = "auto"
    """Stop after this number of epochs without a better validation score, once the score is above 0. auto chooses 5
    epochs and at least 200 steps, or 5 epochs for language models and generated texts; null never stops early."""
    frozen_cache: ByteSize | None = "2GiB"
    """Maximum disk space for the activations of the frozen layers below the lowest adapted one. They are computed once
    instead of in each epoch, and results are the same except for rounding. If the space is too small, peftlab prints a
    warning and does not cache; null never caches. In both cases these layers run without dropout."""

    @field_validator("max_steps")
    @classmethod
    def _check_one_length(cls, steps: int | None, info: ValidationInfo) -> int | None:
        if steps and info.data.get("num_train_epochs"):
            raise ValueError("should not be set together with num_train_epochs; set that to null")
        return steps

    @field_validator("fp16")
    @classmethod
    def _check_one_precision(cls, fp16: bool | None, info: ValidationInfo) -> bool | None:
        if fp16 and info.data.get("bf16"):
            raise ValueError("should not be true together with bf16")
        return fp16


class Recipe(Section):
    """A recipe: base, task, method, data and training."""

    name: AdapterName
    """Name of the adapter: 2 to 63 lower-case letters, digits and dashes."""
    base: BaseSection
    task: TaskSection
    method: MethodSection = Lora()
    data: DataSection
    training: TrainingSection = Field(TrainingSection(), validate_default=True)

    @property
    def cross_validates_few_rows(self) -> bool:
        """Whether a run with few rows and `validation: auto` is scored by cross-validation."""
        return self.task.has_baselines and self.training.distributed not in SHARDING
