"""The `task` section of a recipe: one class a task."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from peftlab.recipe.types import Fraction, Labels, NonNegativeInt, PositiveInt, Section

TEMPLATE_ENDING = ".jinja"
LABEL_SMOOTHING_LOSSES = ("robust", "exo_pair", "aot", "aot_unpaired")


def _template_file(path: str) -> str:
    if not path.endswith(TEMPLATE_ENDING):
        raise ValueError(f"should be a file that ends in {TEMPLATE_ENDING}")
    return path


TemplateFile = Annotated[str, AfterValidator(_template_file)]


class TaskFields(Section):
    """The base class of all `task` sections: what the rest of a recipe depends on."""

    type: str
    reads_plain_text: ClassVar[bool] = False
    """Whether a file that is no table holds text as it is; for other tasks it has inline markup."""
    uses_base_head: ClassVar[bool] = False
    """Whether the base model's own head is used and stays as it is."""
    is_encoder_decoder: ClassVar[bool] = False
    """Whether the base model is an encoder with a decoder."""
    trains_token_embeddings: ClassVar[bool] = False
    """Whether embeddings of single tokens can be trained."""
    trainer: ClassVar[Literal["supervised", "preference"]] = "supervised"
    """How the adapter is trained."""

    @property
    def packing_conflict(self) -> str:
        """Why texts cannot share rows of a batch; empty if they can."""
        return f"each text of {self.type} needs its own row."

    @property
    def sharding_conflict(self) -> str:
        """Why processes cannot each hold a part of the base model; empty if they can."""
        return ""

    def _scored_by_generation(self) -> str:
        return f"{self.type} is scored by generating text, and each process holds only a part of the base."


class TokenClassification(TaskFields):
    """Entities and other labelled spans of words."""

    type: Literal["token-classification"]
    labels: Labels | None = None
    """Entity types, in order; null takes those found in the training rows."""
    tag_scheme: Literal["auto", "iob1", "iob2", "iobes"] = "auto"
    """How `tags` in the data mark entities; auto looks at each split."""


class TextClassification(TaskFields):
    """One label, or any number of labels, for a text or a pair of texts."""

    type: Literal["text-classification"]
    labels: Labels | None = None
    """Class names, in order, also what numbers in the data stand for; null takes those found in the training rows."""
    multi_label: bool = False
    """A row has a list of labels, which may be empty, instead of exactly one."""
    threshold: Fraction = 0.5
    """With multi_label: the probability from which on a label is given."""
    class_weights: Literal["balanced"] | None = None
    """balanced weighs each class by the inverse of its frequency in training."""


class Regression(TaskFields):
    """A number for a text or a pair of texts."""

    type: Literal["regression"]
    loss: Literal["mse", "mae"] = "mse"
    """Squared error, or absolute error, which outliers move less."""


class QuestionAnswering(TaskFields):
    """The span of a context that answers a question, or none."""

    type: Literal["question-answering"]
    doc_stride: PositiveInt = 128
    """Tokens that one window of a long context shares with the next."""
    max_answer_length: PositiveInt = 30
    """Longest answer, in tokens, that is looked for."""


class RelationExtraction(TaskFields):
    """The relation between two marked spans of a text."""

    type: Literal["relation-extraction"]
    labels: Labels | None = None
    """Relations, in order; null takes those found in the training rows."""
    negative_label: str | None = None
    """The label that says there is no relation, left out of the scores; null takes Other, no_relation, NA or none."""


class Generation(Section):
    """How a text goes on when an adapter is asked: Transformers' own names."""

    max_new_tokens: PositiveInt = 128
    """The longest reply, in tokens."""
    num_beams: PositiveInt = 1
    """From 2 on, beam search for the likeliest reply."""
    do_sample: bool = False
    """Draw each token by its probability, instead of taking the likeliest."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """With do_sample: below 1 the likely become likelier."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With do_sample: draw among the likeliest, which have this much probability together."""
    top_k: NonNegativeInt = 0
    """With do_sample: draw among so many of the likeliest; 0 for all."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1, tokens that were there already become less likely."""
    no_repeat_ngram_size: NonNegativeInt = 0
    """No run of so many tokens comes twice; 0 for no such rule."""
    length_penalty: float = 1.0
    """With num_beams: above 0 longer replies are preferred, below 0 shorter ones."""
    stop_strings: list[str] = []
    """A reply also ends before any of these."""


class LanguageModelTask(TaskFields):
    uses_base_head: ClassVar[bool] = True

    template: Literal["base", "chatml", "llama-3", "mistral", "gemma", "plain"] | TemplateFile | None = None
    """How instructions and chats are written; base is the tokenizer's own; null takes that if there is one, else plain;
    yours is a .jinja file, relative to the recipe. Its text is published with the adapter."""
    system: str | None = None
    """What the system says in chats that do not begin with a message of its own."""
    generation: Generation = Generation()
    """How replies are made; published with the adapter."""


class CausalLm(LanguageModelTask):
    """A text that goes on: instructions with their answers, chats, or plain text."""

    reads_plain_text: ClassVar[bool] = True
    trains_token_embeddings: ClassVar[bool] = True
    type: Literal["causal-lm"]
    scored_by: Literal["perplexity", "rouge", "bleu"] = "perplexity"
    """perplexity of the answers, or replies compared with them, the last of each chat: by ROUGE, or BLEU and chrF."""

    @property
    def packing_conflict(self) -> str:
        """None: see `TaskFields.packing_conflict`."""
        return ""

    @property
    def sharding_conflict(self) -> str:
        """See `TaskFields.sharding_conflict`."""
        return "" if self.scored_by == "perplexity" else self._scored_by_generation()


class Preference(LanguageModelTask):
    """Of two answers the better one, by direct preference optimization against the base."""

    trainer: ClassVar[Literal["supervised", "preference"]] = "preference"
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
        return "the reference scores of the base are computed before training, where no process holds the whole base."


class Translation(TaskFields):
    """A text in another language, by an encoder with a decoder."""

    reads_plain_text: ClassVar[bool] = True
    uses_base_head: ClassVar[bool] = True
    is_encoder_decoder: ClassVar[bool] = True
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

    @property
    def sharding_conflict(self) -> str:
        """See `TaskFields.sharding_conflict`."""
        return self._scored_by_generation()


class Summarization(TaskFields):
    """A text in short, by an encoder with a decoder."""

    reads_plain_text: ClassVar[bool] = True
    uses_base_head: ClassVar[bool] = True
    is_encoder_decoder: ClassVar[bool] = True
    type: Literal["summarization"]
    prefix: str | None = None
    """What stands before each text, as in `summarize: ` (T5)."""
    rouge_tokenize: Literal["unicode", "rouge-score"] = "unicode"
    """unicode takes words of any script, and characters where words are not set apart; rouge-score splits as that
    package does, which knows Latin letters without accents alone."""
    generation: Generation = Generation()
    """How summaries are made; published with the adapter."""

    @property
    def sharding_conflict(self) -> str:
        """See `TaskFields.sharding_conflict`."""
        return self._scored_by_generation()


class DomainAdaptation(TaskFields):
    """Plain text of a domain, from which the base goes on learning as it was pretrained (DAPT, TAPT)."""

    reads_plain_text: ClassVar[bool] = True
    uses_base_head: ClassVar[bool] = True
    type: Literal["domain-adaptation"]
    objective: Literal["masked-lm", "causal-lm"] | None = None
    """masked-lm finds masked tokens, causal-lm foresees each next one; null takes what the base was pretrained for."""
    mask_probability: Fraction | None = None
    """masked-lm: share of a text's tokens that is masked, anew in every epoch; null takes 0.15. Scores always mask
    0.15."""
    generation: Generation | None = None
    """causal-lm: how texts go on when the adapter is asked; null takes the defaults, but at most half of the longest
    input for new tokens."""

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
            return "masked tokens are predicted from the whole row, so each text needs its own row."
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
