"""The `task` section of a recipe: one class for each task."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from peftlab.recipe.types import (
    ClassWeights,
    Fraction,
    Labels,
    LabelSmoothing,
    NonNegativeInt,
    PositiveInt,
    Section,
)

TEMPLATE_ENDING = ".jinja"
LABEL_SMOOTHING_LOSSES = ("robust", "exo_pair", "aot", "aot_unpaired")


def _template_file(path: str) -> str:
    if not path.endswith(TEMPLATE_ENDING):
        raise ValueError(f"should be a file that ends in {TEMPLATE_ENDING}")
    return path


TemplateFile = Annotated[str, AfterValidator(_template_file)]


class TaskFields(Section):
    """The base class of all `task` sections, with the facts that other sections depend on."""

    type: str
    reads_plain_text: ClassVar[bool] = False
    """Whether files that are no tables contain plain text; for other tasks they contain inline markup."""
    uses_base_head: ClassVar[bool] = False
    """Whether the task uses the base model's own head, unchanged."""
    is_encoder_decoder: ClassVar[bool] = False
    """Whether the base model is an encoder with a decoder."""
    has_pooled_output: ClassVar[bool] = False
    """Whether the task has one output per input, for which `base.pooling` can be chosen."""
    trains_token_embeddings: ClassVar[bool] = False
    """Whether embeddings of single tokens can be trained."""
    trainer: ClassVar[Literal["supervised", "preference"]] = "supervised"
    """How the adapter is trained."""
    epochs_from_rows: ClassVar[bool] = True
    """Whether few training rows get more epochs, and more patience, by default."""
    raises_rate_for_few_rows: ClassVar[bool] = False
    """Whether few training rows get the method's learning rate for few rows: it is better for tags, and not for labels
    of texts (decision 0038)."""
    has_baselines: ClassVar[bool] = True
    """Whether the head is a linear layer for classes, tags or numbers, so that a majority and a linear probe can be
    compared with the adapter."""

    classifies_inputs: ClassVar[bool] = False
    """Whether the labels are classes of whole inputs, for which training can be contrastive."""
    contrastive_by_default: ClassVar[bool] = False
    """Whether `training.few_shot: auto` can choose contrastive training."""

    @property
    def packing_conflict(self) -> str:
        """Why texts cannot share rows of a batch; empty if they can."""
        return f"each text of {self.type} needs its own row."

    @property
    def sharding_conflict(self) -> str:
        """Why the base model cannot be sharded (fsdp, deepspeed); empty if it can."""
        return ""

    def _scored_by_generation(self) -> str:
        return f"{self.type} is scored by generating text, and each process keeps only a shard of the base."


class TokenClassification(TaskFields):
    """Labelled spans of words, such as named entities."""

    raises_rate_for_few_rows: ClassVar[bool] = True
    type: Literal["token-classification"]
    labels: Labels | None = None
    """Entity types, in order; null uses those of the training rows. If the data has numbers as tags: all tags in the
    order of their numbers, as in [O, B-PER, I-PER]."""
    tag_scheme: Literal["auto", "iob1", "iob2", "iobes", "bmes", "io"] = "auto"
    """Tag scheme of the column `tags` in the data; auto detects it for each split. io: tags are types without a
    prefix, and neighbouring words of one type are one entity."""
    class_weights: ClassWeights | None = None
    """balanced: weight each tag in the loss by its inverse frequency among the training words; numbers by name, as in
    `{PER: 3, O: 0.5}`: weights of both tags of an entity type, and of O, with 1 for the others; null: no weights."""
    label_smoothing: LabelSmoothing = 0.0
    """Share of each target's probability that is spread evenly over all tags in the loss."""


class TextClassification(TaskFields):
    """One label, or several labels, for a text or a pair of texts."""

    has_pooled_output: ClassVar[bool] = True
    classifies_inputs: ClassVar[bool] = True
    contrastive_by_default: ClassVar[bool] = True
    type: Literal["text-classification"]
    labels: Labels | None = None
    """Class names, in order; numbers in the data are indices of this list. null uses the labels of the training
    rows."""
    multi_label: bool = False
    """Each row has a list of labels, which may be empty, instead of exactly one label."""
    threshold: Literal["auto"] | Fraction = "auto"
    """With multi_label: the minimum probability of a predicted label. auto fits one for each label to the micro F1 of
    the validation rows."""
    class_weights: ClassWeights | None = None
    """balanced: weight each class in the loss by its inverse frequency in the training rows; numbers by name, as in
    `{urgent: 3}`: weights of these classes, with 1 for the others; null: no weights. With multi_label it is the weight
    of the rows that have the label."""
    label_smoothing: LabelSmoothing = 0.0
    """Share of each target's probability that is spread evenly over all classes in the loss; with multi_label, over
    having the label and not having it."""


class Regression(TaskFields):
    """A number for a text or a pair of texts."""

    has_pooled_output: ClassVar[bool] = True
    type: Literal["regression"]
    loss: Literal["mse", "mae"] = "mse"
    """mse: mean squared error; mae: mean absolute error, which is less sensitive to outliers."""


class QuestionAnswering(TaskFields):
    """The span of a context that answers a question, or no answer."""

    has_baselines: ClassVar[bool] = False
    type: Literal["question-answering"]
    doc_stride: PositiveInt = 128
    """Number of tokens by which two neighbouring windows of a long context overlap."""
    max_answer_length: PositiveInt = 30
    """Maximum length of an answer in tokens."""


class RelationExtraction(TaskFields):
    """The relation between two marked spans of a text."""

    classifies_inputs: ClassVar[bool] = True
    has_pooled_output: ClassVar[bool] = True
    type: Literal["relation-extraction"]
    labels: Labels | None = None
    """Relations, in order; null uses those of the training rows."""
    negative_label: str | None = None
    """The label for "no relation", which the scores leave out; null uses Other, no_relation, NA or none if one is a
    label."""
    class_weights: ClassWeights | None = None
    """The same as for text-classification."""
    label_smoothing: LabelSmoothing = 0.0
    """Share of each target's probability that is spread evenly over all relations in the loss."""


class Generation(Section):
    """Settings for generating text, with the names of Transformers."""

    max_new_tokens: PositiveInt = 128
    """Maximum length of a reply in tokens."""
    num_beams: PositiveInt = 1
    """Number of beams in beam search; 1 means no beam search."""
    do_sample: bool = False
    """Sample each token by its probability instead of taking the most probable one."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """With do_sample: logits are divided by this number; below 1, probable tokens become more probable."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With do_sample: sample from the smallest set of most probable tokens whose probabilities sum to this number."""
    top_k: NonNegativeInt = 0
    """With do_sample: sample from this number of most probable tokens; 0 means all tokens."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1, tokens that already occur in the text become less probable."""
    no_repeat_ngram_size: NonNegativeInt = 0
    """No n-gram of this number of tokens occurs twice; 0 means no restriction."""
    length_penalty: float = 1.0
    """With num_beams: above 0 favours longer replies, below 0 shorter ones."""
    stop_strings: list[str] = []
    """A reply ends before any of these strings."""


class LanguageModelTask(TaskFields):
    uses_base_head: ClassVar[bool] = True
    epochs_from_rows: ClassVar[bool] = False
    has_baselines: ClassVar[bool] = False

    template: Literal["base", "chatml", "llama-3", "mistral", "gemma", "plain"] | TemplateFile | None = None
    """Chat template for instructions and chats: base is the tokenizer's own; null uses base if the tokenizer has one,
    else plain; a path of a .jinja file, relative to the recipe, is your own template. It is published with the
    adapter."""
    system: str | None = None
    """The system prompt of chats that do not begin with a system message."""
    generation: Generation = Generation()
    """Settings for generating replies; they are published with the adapter."""


class CausalLm(LanguageModelTask):
    """Text generation: instructions with answers, chats, prompts with completions, or plain text."""

    reads_plain_text: ClassVar[bool] = True
    trains_token_embeddings: ClassVar[bool] = True
    type: Literal["causal-lm"]
    scored_by: Literal["perplexity", "rouge", "bleu"] = "perplexity"
    """perplexity: of the answers. rouge, bleu: generate a reply to the last turn of each chat, and compare it with the
    answer by ROUGE, or by BLEU and chrF."""

    @property
    def packing_conflict(self) -> str:
        """No conflict; see `TaskFields.packing_conflict`."""
        return ""

    @property
    def sharding_conflict(self) -> str:
        """See `TaskFields.sharding_conflict`."""
        return "" if self.scored_by == "perplexity" else self._scored_by_generation()


class Preference(LanguageModelTask):
    """Preferences between two answers, by direct preference optimization (DPO). The reference model is the base, or the
    adapter of method.start_from."""

    trainer: ClassVar[Literal["supervised", "preference"]] = "preference"
    type: Literal["preference"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the penalty for differing from the reference: a larger beta keeps replies closer to it (for ipo, this
    is τ)."""
    loss_type: Literal[
        "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sigmoid_norm",
    ] = "sigmoid"  # fmt: skip
    """Name of the loss in TRL; sigmoid is the original DPO loss."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5, validate_default=True)] = 0.0
    """For robust, exo_pair, aot and aot_unpaired: the assumed fraction of pairs with swapped answers."""

    @field_validator("label_smoothing")
    @classmethod
    def _check_label_smoothing(cls, share: float, info: ValidationInfo) -> float:
        loss = info.data.get("loss_type")
        if loss == "exo_pair" and not share:
            raise ValueError("should be above 0 with exo_pair, as 1e-3 is")
        if share and loss not in LABEL_SMOOTHING_LOSSES:
            raise ValueError(f"should come with one of {', '.join(LABEL_SMOOTHING_LOSSES)}")
        return share

    @property
    def sharding_conflict(self) -> str:
        """See `TaskFields.sharding_conflict`."""
        return "the reference scores of the base are computed before training, and no process has the full base."


class Translation(TaskFields):
    """Translation by an encoder-decoder model."""

    reads_plain_text: ClassVar[bool] = True
    uses_base_head: ClassVar[bool] = True
    is_encoder_decoder: ClassVar[bool] = True
    epochs_from_rows: ClassVar[bool] = False
    has_baselines: ClassVar[bool] = False
    type: Literal["translation"]
    source_language: str | None = None
    """For multilingual bases: the tokenizer's code of the source language, as in eng_Latn (NLLB) or en_XX (mBART)."""
    target_language: str | None = None
    """For multilingual bases: the tokenizer's code of the target language."""
    prefix: str | None = None
    """Text that is prepended to each input, as in `translate English to German: ` (T5)."""
    bleu_tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a"
    """Tokenizer of sacreBLEU: zh is for Chinese, char for other languages without spaces between words."""
    generation: Generation = Generation()
    """Settings for generating translations; they are published with the adapter."""

    @property
    def sharding_conflict(self) -> str:
        """See `TaskFields.sharding_conflict`."""
        return self._scored_by_generation()


class Summarization(TaskFields):
    """Summarization by an encoder-decoder model."""

    reads_plain_text: ClassVar[bool] = True
    uses_base_head: ClassVar[bool] = True
    is_encoder_decoder: ClassVar[bool] = True
    epochs_from_rows: ClassVar[bool] = False
    has_baselines: ClassVar[bool] = False
    type: Literal["summarization"]
    prefix: str | None = None
    """Text that is prepended to each input, as in `summarize: ` (T5)."""
    rouge_tokenize: Literal["unicode", "rouge-score"] = "unicode"
    """unicode: words of any script, and single characters in scripts without spaces; rouge-score: the tokenizer of that
    package, which knows only Latin letters without accents."""
    generation: Generation = Generation()
    """Settings for generating summaries; they are published with the adapter."""

    @property
    def sharding_conflict(self) -> str:
        """See `TaskFields.sharding_conflict`."""
        return self._scored_by_generation()


class DomainAdaptation(TaskFields):
    """Continued pretraining on plain text of a domain (DAPT, TAPT)."""

    reads_plain_text: ClassVar[bool] = True
    uses_base_head: ClassVar[bool] = True
    epochs_from_rows: ClassVar[bool] = False
    has_baselines: ClassVar[bool] = False
    type: Literal["domain-adaptation"]
    objective: Literal["masked-lm", "causal-lm"] | None = None
    """masked-lm: predict masked tokens; causal-lm: predict the next token; null: the pretraining objective of the
    base."""
    mask_probability: Fraction | None = None
    """For masked-lm: the fraction of tokens to mask, redrawn in each epoch; null means 0.15. Validation and test always
    use 0.15."""
    generation: Generation | None = None
    """For causal-lm: settings for generating text; null uses the defaults, but max_new_tokens is at most half of the
    maximum length."""

    @field_validator("mask_probability", "generation")
    @classmethod
    def _check_objective(cls, value: Any, info: ValidationInfo) -> Any:
        required = "causal-lm" if info.field_name == "generation" else "masked-lm"
        if value is not None and info.data.get("objective", required) not in (None, required):
            raise ValueError(f"should come with objective: {required}")
        return value

    @property
    def packing_conflict(self) -> str:
        """See `TaskFields.packing_conflict`."""
        if self.objective == "masked-lm":
            return "masked tokens are predicted from the full row, so each text needs its own row."
        return ""


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
