"""The whole recipe, on one page: every key a user can write, its type, default and meaning.

Names inside `method` are PEFT's, names inside `training` are Transformers'. Unknown keys are refused, types are not
coerced.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Quantization = Literal["8bit", "4bit"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
Optimizer = Literal[
    "adamw_torch_fused", "adamw_torch", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "adafactor", "adagrad", "rmsprop", "sgd", "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit",
]  # fmt: skip
TEMPLATE_ENDING = ".jinja"
SHARDING = ("fsdp", "deepspeed")
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _named_once(labels: list[str]) -> list[str]:
    if len(set(labels)) < len(labels) or not all(labels):
        raise ValueError("should be names, each given once")
    return labels


def _adapter_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,62}", name):
        raise ValueError("should be 2 to 63 lower-case letters, digits and dashes, and not begin with a dash")
    return name


def bytes_in(size: str) -> int:
    """`500MB`, `1.5 GiB` → bytes.

    Raises:
        ValueError: `size` is not a number and a unit.
    """
    written = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(BYTES)})", size)
    if not written:
        raise ValueError(f"should be a number and one of {', '.join(BYTES)}, as in 2GiB")
    return int(float(written[1]) * BYTES[written[2]])


def _size(written: str) -> str:
    try:
        bytes_in(written)
    except ValueError as error:
        raise ValueError(f"{error}; null for none") from None
    return written


def _lora_by_default(section: Any) -> Any:
    return {"type": "lora", **section} if isinstance(section, dict) else section


def _template_file(path: str) -> str:
    if not path.endswith(TEMPLATE_ENDING):
        raise ValueError(f"should be a file that ends in {TEMPLATE_ENDING}")
    return path


Labels = Annotated[list[str], Field(min_length=1), AfterValidator(_named_once)]
TemplateFile = Annotated[str, AfterValidator(_template_file)]
AdapterName = Annotated[str, AfterValidator(_adapter_name)]
Size = Annotated[str, AfterValidator(_size)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


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


class Generation(Section):
    """How a text goes on when an adapter is asked: Transformers' own names."""

    max_new_tokens: Positive = 128
    """The longest reply, in tokens."""
    num_beams: Positive = 1
    """From 2 on, beam search for the likeliest reply."""
    do_sample: bool = False
    """Draw each token by its probability, instead of taking the likeliest."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """With do_sample: below 1 the likely become likelier."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With do_sample: draw among the likeliest, which have this much probability together."""
    top_k: Count = 0
    """With do_sample: draw among so many of the likeliest; 0 for all."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1, tokens that were there already become less likely."""
    no_repeat_ngram_size: Count = 0
    """No run of so many tokens comes twice; 0 for no such rule."""
    length_penalty: float = 1.0
    """With num_beams: above 0 longer replies are preferred, below 0 shorter ones."""
    stop_strings: list[str] = []
    """A reply also ends before any of these."""


class Writing(Section):
    type: str
    template: Literal["base", "chatml", "llama-3", "mistral", "gemma", "plain"] | TemplateFile | None = None
    """How instructions and chats are written; base is the tokenizer's own; null takes that if there is one, else plain;
    yours is a .jinja file, relative to the recipe. Its text is published with the adapter."""
    system: str | None = None
    """What the system says in chats that do not begin with a message of its own."""
    generation: Generation = Generation()
    """How replies are made; published with the adapter."""


class CausalLm(Writing):
    """A text that goes on: instructions with their answers, chats, or plain text."""

    type: Literal["causal-lm"]


class Preference(Writing):
    """Of two answers the better one, by direct preference optimization against the base."""

    type: Literal["preference"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How much it costs to move away from the base: the larger, the nearer to it replies stay (for ipo, its τ)."""
    loss_type: Literal[
        "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sigmoid_norm",
    ] = "sigmoid"  # fmt: skip
    """TRL's name of the loss; sigmoid is DPO's own."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5, validate_default=True)] = 0.0
    """With robust, exo_pair, aot and aot_unpaired: the share of pairs that may be the wrong way round."""

    @field_validator("label_smoothing")
    @classmethod
    def _smoothed(cls, share: float, info: ValidationInfo) -> float:
        loss = info.data.get("loss_type")
        if loss == "exo_pair" and not share:
            raise ValueError("should be above 0 with exo_pair, as 1e-3 is")
        if share and loss not in SMOOTHED:
            raise ValueError(f"should come with one of {', '.join(SMOOTHED)}")
        return share


class Translation(Section):
    """A text in another language, by an encoder with a decoder."""

    type: Literal["translation"]
    source_language: str | None = None
    """The code of the texts' language in the tokenizer of a base with many, as in eng_Latn (NLLB) or en_XX (mBART)."""
    target_language: str | None = None
    """The same of what they are translated to."""
    prefix: str | None = None
    """What stands before each text, as in `translate English to German: ` (T5)."""
    bleu_tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a"
    """How sacreBLEU splits texts into words: zh for Chinese, char for other languages that put no blanks between."""
    generation: Generation = Generation()
    """How translations are made; published with the adapter."""


class Summarization(Section):
    """A text in short, by an encoder with a decoder."""

    type: Literal["summarization"]
    prefix: str | None = None
    """What stands before each text, as in `summarize: ` (T5)."""
    rouge_tokenize: Literal["unicode", "rouge-score"] = "unicode"
    """unicode takes words of any script, and characters where words are not set apart; rouge-score splits as that
    package does, which knows Latin letters without accents alone."""
    generation: Generation = Generation()
    """How summaries are made; published with the adapter."""


class DomainAdaptation(Section):
    """Plain text of a domain, from which the base goes on learning as it was pretrained (DAPT, TAPT)."""

    type: Literal["domain-adaptation"]
    objective: Literal["masked-lm", "causal-lm"] | None = None
    """masked-lm finds masked tokens, causal-lm foresees each next one; null takes what the base was pretrained for."""
    mask_probability: Share | None = None
    """masked-lm: share of a text's tokens that is masked, anew in every epoch; null takes 0.15. Scores always mask
    0.15."""
    generation: Generation | None = None
    """causal-lm: how texts go on when the adapter is asked; null takes the defaults, but at most half of the longest
    input for new tokens."""

    @field_validator("mask_probability", "generation")
    @classmethod
    def _of_its_objective(cls, value: Any, info: ValidationInfo) -> Any:
        fitting = "causal-lm" if info.field_name == "generation" else "masked-lm"
        if value is not None and info.data.get("objective", fitting) not in (None, fitting):
            raise ValueError(f"should come with objective: {fitting}")
        return value


PLAIN_TEXT_TASKS = ("causal-lm", "domain-adaptation")
"""Tasks for which a file that is no table holds text as it stands; for others it has markup."""
TaskSection = Annotated[
    TokenClassification
    | TextClassification
    | Regression
    | QuestionAnswering
    | RelationExtraction
    | CausalLm
    | Translation
    | Summarization
    | Preference
    | DomainAdaptation,
    Field(discriminator="type"),
]
SCORED_BY_WRITING = ("translation", "summarization")


class Method(Section):
    start_from: str | None = None
    """A published adapter whose weights this one begins with, whatever its task: `name` or `name@version` in the store,
    or the path of its folder, relative to the recipe, as in ../adapters/name. Base, method and its shape must be the
    same; the head is taken only where task and labels are."""

    @property
    def usual_learning_rate(self) -> float:
        """Where the recipe names none: the best of a small grid on validation rows of two sample sets (0014)."""
        return 1e-3

    @property
    def input_tokens(self) -> int:
        """How many tokens of the longest input the method takes for itself."""
        return 0


class Lora(Method):
    """Low-rank updates of Linear layers."""

    type: Literal["lora"] = "lora"
    r: Positive = 8
    """Rank of the update."""
    lora_alpha: Positive = 16
    """The update is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with use_rslora)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names, or ends of names, of the layers to adapt; all-linear takes every Linear of the base, never the head."""
    layers_to_transform: list[Count] | Count | None = None
    """Only in these of the base's layers, counted from 0; null takes all. Below the lowest adapted one, training has no
    dropout, and `training.frozen_cache` saves most of its time."""
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: Literal[True, "gaussian", "orthogonal"] = True
    """How A begins: true takes a uniform distribution. B begins as 0, with orthogonal so that BA = 0."""
    rank_pattern: dict[str, Positive] = {}
    """Ends of layer names → their own r."""
    alpha_pattern: dict[str, Positive] = {}
    """Ends of layer names → their own lora_alpha."""
    trainable_token_indices: Literal["endings"] | Annotated[list[str | Count], Field(min_length=1)] | None = None
    """causal-lm: tokens, by text or number, whose embeddings train as well, of all embeddings these alone; endings
    takes those that end an answer: the template's ending, and the tokenizer's."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = None
    """LoRA+: B learns at so many times the learning rate of A; null at the same."""


class AdaLora(Method):
    """LoRA whose rank is shared out among the layers while it trains."""

    type: Literal["adalora"]
    target_r: Positive = 8
    """Average rank in the end."""
    init_r: Positive = 12
    """Rank of each layer in the beginning."""
    tinit: Count | None = None
    """Steps before ranks begin to fall; null takes a tenth of all."""
    tfinal: Count | None = None
    """Steps after ranks have stopped falling; null takes three tenths of all."""
    deltaT: Positive = 1  # noqa: N815  # PEFT's name
    """Ranks are shared out anew every so many steps."""
    beta1: Share = 0.85
    """How slowly the importance of a direction follows its gradients."""
    beta2: Share = 0.85
    """How slowly the uncertainty of that importance does."""
    orth_reg_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight in the loss of what keeps directions orthogonal."""
    lora_alpha: Positive = 16
    """The update is scaled by lora_alpha / init_r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """As for lora."""
    layers_to_transform: list[Count] | Count | None = None
    """As for lora."""

    @field_validator("init_r")
    @classmethod
    def _falling(cls, rank: int, info: ValidationInfo) -> int:
        if rank < info.data.get("target_r", 1):
            raise ValueError("should be at least target_r")
        return rank


class Bottleneck(Method):
    """Small two-layer networks between the sub-layers of the base."""

    type: Literal["bottleneck"]
    variant: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """houlsby puts one after attention and one after the feed-forward network of each layer, pfeiffer one after the
    feed-forward network, parallel one beside it."""
    reduction_factor: Positive | None = None
    """The base's width over that of the bottleneck; null takes 16, for parallel 2."""
    activation: Literal["relu", "gelu", "silu", "tanh"] | None = None
    """null takes relu, for houlsby silu."""
    scaling: Annotated[float, Field(gt=0)] | None = None
    """Factor of the update; null takes 1, for parallel 4."""
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Names, or ends of names, of the modules to put them after (parallel: beside); null takes those of the base's
    architecture, if it is a known one."""
    layers_to_transform: list[Count] | Count | None = None
    """Only in these of the base's layers, counted from 0; null takes all."""

    @property
    def usual_learning_rate(self) -> float:
        """See `Method`."""
        return {"houlsby": 3e-3, "pfeiffer": 1e-2, "parallel": 1e-3}[self.variant]


class Ia3(Method):
    """(IA)³: keys, values and the inner activations of feed-forward networks, rescaled."""

    type: Literal["ia3"]
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Names, or ends of names, of the Linear layers whose outputs are rescaled; null takes keys and values."""
    feedforward_modules: list[str] = []
    """With target_modules: the Linear layers whose inputs are rescaled instead."""

    @field_validator("feedforward_modules")
    @classmethod
    def _with_targets(cls, modules: list[str], info: ValidationInfo) -> list[str]:
        if modules and not info.data.get("target_modules"):
            raise ValueError("should come with target_modules")
        return modules

    @property
    def usual_learning_rate(self) -> float:
        """See `Method`: so few numbers that each must move far."""
        return 3e-2


class Prefix(Method):
    """Trained keys and values in front of every self-attention's own; they have no position and take no input."""

    type: Literal["prefix"]
    num_virtual_tokens: Positive = 16
    """Keys, and values, in each layer."""
    prefix_projection: bool = False
    """A small network makes them while training, and is saved with them."""
    encoder_hidden_size: Positive | None = None
    """With prefix_projection: the width between its two layers; null takes that of the keys."""
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Names, or ends of names, of self-attention modules; null takes those of the base's architecture, if it is a known
    one."""
    layers_to_transform: list[Count] | Count | None = None
    """Only in these of the base's layers, counted from 0; null takes all."""

    @field_validator("encoder_hidden_size")
    @classmethod
    def _with_projection(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size and not info.data.get("prefix_projection"):
            raise ValueError("should come with prefix_projection: true")
        return size

    @property
    def usual_learning_rate(self) -> float:
        """See `Method`."""
        return 3e-2


class VirtualTokens(Method):
    num_virtual_tokens: Positive = 16
    """Trained embeddings in front of each input; they count as tokens of it."""

    @property
    def input_tokens(self) -> int:
        """See `Method`."""
        return self.num_virtual_tokens


class Prompt(VirtualTokens):
    """Trained embeddings in front of each input, that begin as words of the base's vocabulary."""

    type: Literal["prompt"]

    @property
    def usual_learning_rate(self) -> float:
        """See `Method`."""
        return 1e-1


class PTuning(VirtualTokens):
    """Trained embeddings in front of each input, made by a small network, which is saved with them."""

    type: Literal["p-tuning"]
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    """Three layers, or a bidirectional LSTM of two and two more."""
    encoder_hidden_size: Positive | None = None
    """Width of the network; null takes that of the embeddings."""

    @property
    def usual_learning_rate(self) -> float:
        """See `Method`."""
        return 3e-3


class OtherMethod(Method):
    """Any other method of PEFT that changes Linear layers; further keys are the fields of its configuration class."""

    model_config = ConfigDict(extra="allow")

    type: Literal[
        "beft", "c3a", "deft", "delora", "fourierft", "glora", "gralora", "hira", "hra", "lily", "loha", "lokr", "miss",
        "oft", "peanut", "psoft", "randlora", "road", "shira", "vblora", "vera", "waveft",
    ]  # fmt: skip
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """As for lora."""
    layers_to_transform: list[Count] | Count | None = None
    """As for lora."""

    @property
    def extras(self) -> dict[str, Any]:
        """The fields of PEFT's configuration that the recipe sets."""
        return dict(self.model_extra or {})


class BitFit(Method):
    """No delta but in the biases: all of them train, of Linear layers and norms."""

    type: Literal["bitfit"]
    layers_to_transform: list[Count] | Count | None = None
    """Only in these of the base's layers, counted from 0; null takes all."""

    @property
    def usual_learning_rate(self) -> float:
        """See `Method`."""
        return 1e-2


class Head(Method):
    """No delta: only the head trains, on the base as it is, whose layers then run without dropout."""

    type: Literal["head"]

    @property
    def usual_learning_rate(self) -> float:
        """See `Method`."""
        return 3e-2


class LastLayers(Method):
    """No delta: the last layers of the base train as they are, with the head."""

    type: Literal["last-layers"]
    layers: Positive = 1
    """How many."""


class Full(Method):
    """No delta: every weight of the base trains, and the adapter holds them all."""

    type: Literal["full"]

    @property
    def usual_learning_rate(self) -> float:
        """See `Method`."""
        return 1e-4


MethodSection = Annotated[
    Lora | AdaLora | Bottleneck | Ia3 | Prefix | Prompt | PTuning | OtherMethod | BitFit | Head | LastLayers | Full,
    Field(discriminator="type"),
    BeforeValidator(_lora_by_default),
]


class DataSection(Section):
    train: str
    """File, relative to the recipe; with `dataset`, the name of a split. `train.{en,de}` are two files whose lines are
    texts and their translations."""
    validation: str | Share = 0.1
    """File or split; a number is the share carved out of the training rows."""
    test: str | Share | None = None
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
    """null takes what suits the method; see `Method.usual_learning_rate`."""
    num_train_epochs: Positive = 10
    per_device_train_batch_size: Positive = 16
    per_device_eval_batch_size: Positive = 32
    gradient_accumulation_steps: Positive = 1
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
    base_dropout: bool = True
    """Leave the base's own dropout on while training."""
    distributed: Literal["ddp", "fsdp", "deepspeed"] | None = None
    """How several processes share the work: each holds the whole base (ddp), or a part of it (fsdp, deepspeed).

    null takes ddp wherever `--launch` starts several.
    """
    seed: Annotated[int, Field(ge=0)] = 42
    """Seeds the head, dropout and row order."""
    early_stopping_patience: Positive | None = 5
    """Stop after so many epochs without a better validation score, once that is above 0; null never stops early."""
    frozen_cache: Size | None = "2GiB"
    """Disk space for what the layers below the lowest adapted one make of each row: computed once instead of in every
    epoch, with the same result to rounding. Where it is not enough, that is said; null never keeps any. In either case
    these layers run without dropout."""

    @field_validator("fp16")
    @classmethod
    def _one_of_both(cls, fp16: bool | None, info: ValidationInfo) -> bool | None:
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
    def _at_the_methods_rate(cls, training: TrainingSection, info: ValidationInfo) -> TrainingSection:
        """A recipe that is written down says its learning rate, whatever a later version takes."""
        if training.learning_rate is not None or "method" not in info.data:
            return training
        return training.model_copy(update={"learning_rate": info.data["method"].usual_learning_rate})
