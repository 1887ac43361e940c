"""The `method` section of a recipe: one class for each method, whose fields are PEFT's."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from peftlab.recipe.method import Limits, Method, MethodInfo
from peftlab.recipe.peft_methods import PeftMethod
from peftlab.recipe.types import Fraction, NonNegativeInt, PositiveInt

_OWN_WEIGHTS = "it trains the base's own weights, and quantized ones cannot train"
_PACKED_TYPE = "PEFT makes A and B of the packed weight's type, which cannot train"
_NORMS = "it needs the norms of the base's weights, and 8bit layers give none after their first step"
_ONE_INPUT = "virtual tokens go into one input, and '{}' cannot tell the encoder's from the decoder's."
_SETUP = "import peftlab.methods  # pip install peftlab: "
_OTHER_TOKENS = f"{_SETUP}PEFT's own virtual tokens are of another kind"
_VIRTUAL_TOKENS = "virtual tokens are inputs, not weights"


class Lora(Method):
    """Low-rank updates of Linear layers."""

    info: ClassVar[MethodInfo] = MethodInfo(
        peft_supports_mixed_batches=True,
        limits=(
            Limits(name="dora", key="use_dora", quantization={"8bit": _NORMS}),
            Limits(
                name="orthogonal",
                key="init_lora_weights",
                value="orthogonal",
                quantization={"8bit": _PACKED_TYPE, "4bit": _PACKED_TYPE},
                only_training=True,
            ),
            Limits(
                key="trainable_token_indices",
                sharding="PEFT trains rows of whole embeddings, and each process holds a part of them.",
            ),
        ),
    )
    type: Literal["lora"] = "lora"
    r: PositiveInt = 8
    """Rank of the update."""
    lora_alpha: PositiveInt = 16
    """The update is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with use_rslora)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names, or ends of names, of the layers to adapt; all-linear takes every Linear of the base, never the head."""
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """Numbers of the layers to adapt, counted from 0; null takes all. Layers below the lowest adapted one run without
    dropout, and `training.frozen_cache` saves most of their time."""
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: Literal[True, "gaussian", "orthogonal"] = True
    """Initial values of A: true draws them uniformly. B begins as 0; with orthogonal, A and B begin so that BA = 0."""
    rank_pattern: dict[str, PositiveInt] = {}
    """Ends of layer names → their own r."""
    alpha_pattern: dict[str, PositiveInt] = {}
    """Ends of layer names → their own lora_alpha."""
    trainable_token_indices: Literal["endings"] | Annotated[list[str | NonNegativeInt], Field(min_length=1)] | None = (
        None
    )
    """causal-lm: tokens, by text or id, whose embeddings train as well; all other embeddings stay frozen. endings takes
    the tokens that end an answer: the template's ending, and the tokenizer's end of text."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = None
    """LoRA+: B's learning rate divided by A's; null takes the same for both."""

    @property
    def has_trainable_tokens(self) -> bool:
        """See `Method`."""
        return bool(self.trainable_token_indices)


class AdaLora(Method):
    """LoRA whose rank is distributed among the layers while it trains."""

    info: ClassVar[MethodInfo] = MethodInfo(
        limits=(
            Limits(
                start_from="'adalora' redistributes its ranks while it trains, and a trained one has few left.",
                sharding="'adalora' compares directions of whole layers, and each process holds a part of them.",
            ),
        ),
    )
    type: Literal["adalora"]
    target_r: PositiveInt = 8
    """Average rank at the end of training."""
    init_r: PositiveInt = 12
    """Rank of each layer at the beginning."""
    tinit: NonNegativeInt | None = None
    """Steps before ranks begin to fall; null takes a tenth of all."""
    tfinal: NonNegativeInt | None = None
    """Steps after ranks have stopped falling; null takes three tenths of all."""
    deltaT: PositiveInt = 1  # noqa: N815  # PEFT's name
    """Steps between two distributions of the ranks."""
    beta1: Fraction = 0.85
    """Decay of the moving average of a direction's importance."""
    beta2: Fraction = 0.85
    """Decay of the moving average of that importance's uncertainty."""
    orth_reg_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the orthogonality term in the loss."""
    lora_alpha: PositiveInt = 16
    """The update is scaled by lora_alpha / init_r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """As for lora."""
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """As for lora."""

    @field_validator("init_r")
    @classmethod
    def _check_rank(cls, rank: int, info: ValidationInfo) -> int:
        if rank < info.data.get("target_r", 1):
            raise ValueError("should be at least target_r")
        return rank


class Bottleneck(Method):
    """Small two-layer networks between the sub-layers of the base."""

    info: ClassVar[MethodInfo] = MethodInfo(
        limits=(Limits(merging="a bottleneck is not linear, and no weight of the base could stand for it"),),
        setup_code=f"{_SETUP}PEFT itself has no bottleneck adapters",
    )
    type: Literal["bottleneck"]
    variant: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """houlsby: one after attention and one after the feed-forward network of each layer; pfeiffer: one after the
    feed-forward network; parallel: one parallel to it."""
    reduction_factor: PositiveInt | None = None
    """The base's hidden size divided by the bottleneck's; null takes 16 (parallel: 2)."""
    activation: Literal["relu", "gelu", "silu", "tanh"] | None = None
    """null takes relu (houlsby: silu)."""
    scaling: Annotated[float, Field(gt=0)] | None = None
    """Factor of the update; null takes 1 (parallel: 4)."""
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Names, or ends of names, of the modules that get one; null takes those of the base's architecture, if it is
    known."""
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """Numbers of the layers to adapt, counted from 0; null takes all."""

    @property
    def default_learning_rate(self) -> float:
        """See `Method`."""
        return {"houlsby": 3e-3, "pfeiffer": 1e-2, "parallel": 1e-3}[self.variant]


class Ia3(Method):
    """(IA)³: one trained factor for each key, value and inner activation of feed-forward networks."""

    info: ClassVar[MethodInfo] = MethodInfo(learning_rate=3e-2)  # so few parameters that each must move far
    type: Literal["ia3"]
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Names, or ends of names, of the Linear layers whose outputs are scaled; null takes keys and values."""
    feedforward_modules: list[str] = []
    """With target_modules: the Linear layers whose inputs are scaled instead."""

    @field_validator("feedforward_modules")
    @classmethod
    def _need_target_modules(cls, modules: list[str], info: ValidationInfo) -> list[str]:
        if modules and not info.data.get("target_modules"):
            raise ValueError("should come with target_modules")
        return modules


class Prefix(Method):
    """Trained keys and values in front of every self-attention's own; they have no position and use no input tokens."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=3e-2,
        limits=(Limits(merging="no weight of an attention layer could stand for a prefix"),),
        setup_code=f"{_SETUP}PEFT's own prefixes are of another kind",
    )
    type: Literal["prefix"]
    num_virtual_tokens: PositiveInt = 16
    """Trained keys, and values, in each layer."""
    prefix_projection: bool = False
    """A small network computes keys and values from embeddings; it is saved with them."""
    encoder_hidden_size: PositiveInt | None = None
    """With prefix_projection: the hidden size of that network; null takes the size of the keys."""
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Names, or ends of names, of self-attention modules; null takes those of the base's architecture, if it is
    known."""
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """Numbers of the layers to adapt, counted from 0; null takes all."""

    @field_validator("encoder_hidden_size")
    @classmethod
    def _need_projection(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size and not info.data.get("prefix_projection"):
            raise ValueError("should come with prefix_projection: true")
        return size


class VirtualTokens(Method):
    """Trained embeddings in front of each input."""

    num_virtual_tokens: PositiveInt = 16
    """Trained embeddings in front of each input; they count as tokens of it."""

    @property
    def input_tokens(self) -> int:
        """See `Method`."""
        return self.num_virtual_tokens


class Prompt(VirtualTokens):
    """Trained embeddings in front of each input; they begin as words drawn from the base's vocabulary."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=1e-1,
        limits=(Limits(encoder_decoder=_ONE_INPUT.format("prompt"), merging=_VIRTUAL_TOKENS),),
        supports_mixed_batches=False,
        setup_code=_OTHER_TOKENS,
    )
    type: Literal["prompt"]


class PTuning(VirtualTokens):
    """Trained embeddings in front of each input, computed by a small network, which is saved with them."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=3e-3,
        limits=(Limits(encoder_decoder=_ONE_INPUT.format("p-tuning"), merging=_VIRTUAL_TOKENS),),
        supports_mixed_batches=False,
        setup_code=_OTHER_TOKENS,
    )
    type: Literal["p-tuning"]
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    """MLP: three layers; LSTM: a bidirectional LSTM of two layers, and two more."""
    encoder_hidden_size: PositiveInt | None = None
    """Hidden size of the network; null takes the size of the embeddings."""


class BitFit(Method):
    """Differences to all biases of the base, those of Linear layers and of norms."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=1e-2, setup_code=f"{_SETUP}PEFT itself has no differences to biases"
    )
    type: Literal["bitfit"]
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """Numbers of the layers to adapt, counted from 0; null takes all."""


class LnTuning(Method):
    """Every norm of the base trains, as the adapter's own copy."""

    info: ClassVar[MethodInfo] = MethodInfo(learning_rate=1e-2)
    type: Literal["ln-tuning"]
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """Numbers of the layers to adapt, counted from 0; null takes all."""


class Head(Method):
    """Only the head trains, on the unchanged base, whose layers run without dropout."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=3e-2,
        limits=(
            Limits(
                base_head="'head' trains only a new head, and this task uses the base's own.",
                start_from="'head' has no delta that could begin with another adapter's.",
            ),
        ),
        card_note="The base stays as it is: only its head is new.",
    )
    type: Literal["head"]


class LastLayers(Method):
    """The last layers of the base and the head train; the adapter holds these layers."""

    info: ClassVar[MethodInfo] = MethodInfo(
        limits=(Limits(quantization={"8bit": _OWN_WEIGHTS, "4bit": _OWN_WEIGHTS}),),
    )
    type: Literal["last-layers"]
    layers: PositiveInt = 1
    """Number of layers that train."""

    @property
    def freezes_lower_layers(self) -> bool:
        """See `Method`."""
        return True


class Full(Method):
    """Every weight of the base trains; the adapter holds them all."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=1e-4,
        limits=(
            Limits(
                quantization={"8bit": _OWN_WEIGHTS, "4bit": _OWN_WEIGHTS},
                encoder_decoder="'full' trains each module for itself, and encoder and decoder share their embeddings.",
            ),
        ),
    )
    type: Literal["full"]


def _lora_by_default(section: Any) -> Any:
    return {"type": "lora", **section} if isinstance(section, dict) else section


MethodSection = Annotated[
    Lora
    | AdaLora
    | Bottleneck
    | Ia3
    | Prefix
    | Prompt
    | PTuning
    | PeftMethod
    | BitFit
    | LnTuning
    | Head
    | LastLayers
    | Full,
    Field(discriminator="type"),
    BeforeValidator(_lora_by_default),
]
