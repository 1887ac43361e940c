"""The `method` section of a recipe: one class for each method, with PEFT's field names."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from peftlab.recipe.method import Limits, Method, MethodInfo
from peftlab.recipe.peft_methods import PeftMethod
from peftlab.recipe.types import Fraction, NonNegativeInt, PositiveInt

_OWN_WEIGHTS = "it trains the base's own weights, and quantized ones cannot train"
_PACKED_TYPE = "PEFT makes A and B of the packed weight's type, which cannot train"
_NORMS = "it needs the norms of the base's weights, and 8bit layers give none after their first step"
_ONE_INPUT = "virtual tokens go into one input, and '{}' does not distinguish encoder and decoder inputs."
_SETUP = "import peftlab.methods  # pip install peftlab: "
_OTHER_TOKENS = f"{_SETUP}PEFT's own virtual tokens have another format"
_VIRTUAL_TOKENS = "virtual tokens are inputs, not weights"


class Lora(Method):
    """Low-rank updates of Linear layers (LoRA)."""

    info: ClassVar[MethodInfo] = MethodInfo(
        few_rows_factor=3,
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
                sharding="PEFT trains rows of the full embedding matrix, and each process keeps only a shard of it.",
            ),
        ),
    )
    type: Literal["lora"] = "lora"
    r: PositiveInt = 8
    """Rank of the update matrices."""
    lora_alpha: PositiveInt = 16
    """The update is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with use_rslora)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names, or name suffixes, of the layers to adapt; all-linear means every Linear layer of the base except the
    head."""
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """Indices of the layers to adapt, starting at 0; null adapts all layers. Layers below the lowest adapted one run
    without dropout, and `training.frozen_cache` avoids most of their computation."""
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: Literal[True, "gaussian", "orthogonal"] = True
    """Initialization of A: true means Kaiming uniform. B starts at 0; with orthogonal, A and B start such that BA =
    0."""
    rank_pattern: dict[str, PositiveInt] = {}
    """Name suffix of layers → their r, if it differs from `r`."""
    alpha_pattern: dict[str, PositiveInt] = {}
    """Name suffix of layers → their lora_alpha, if it differs from `lora_alpha`."""
    trainable_token_indices: Literal["endings"] | Annotated[list[str | NonNegativeInt], Field(min_length=1)] | None = (
        None
    )
    """For causal-lm: tokens, by text or id, whose embeddings are trained too; all other embeddings stay frozen. endings
    means the tokens that end an answer: those of the chat template, and the tokenizer's eos token."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = None
    """LoRA+: the ratio of B's learning rate to A's; null uses the same learning rate for both."""

    @property
    def few_rows_factor(self) -> float:
        """See `MethodInfo`; 1 with LoRA+, which raises the rate of B itself."""
        return super().few_rows_factor if self.loraplus_lr_ratio is None else 1.0

    @property
    def has_trainable_tokens(self) -> bool:
        """See `Method`."""
        return bool(self.trainable_token_indices)


class AdaLora(Method):
    """LoRA that distributes its rank budget among the layers during training (AdaLoRA)."""

    info: ClassVar[MethodInfo] = MethodInfo(
        few_rows_factor=10,
        limits=(
            Limits(
                start_from="'adalora' redistributes its ranks while it trains, and few ranks are left after training.",
                sharding="'adalora' compares directions of full layers, and each process keeps only a shard of them.",
                freeze="'adalora' distributes its ranks by the gradients of all its layers.",
            ),
        ),
    )
    type: Literal["adalora"]
    target_r: PositiveInt = 8
    """Average rank of a layer after training."""
    init_r: PositiveInt = 12
    """Rank of each layer before training."""
    tinit: NonNegativeInt | None = None
    """Number of steps before ranks are reduced; null means 10 % of all steps."""
    tfinal: NonNegativeInt | None = None
    """Number of final steps in which ranks stay fixed; null means 30 % of all steps."""
    deltaT: PositiveInt = 1  # noqa: N815  # PEFT's name
    """Number of steps between two redistributions of the ranks."""
    beta1: Fraction = 0.85
    """Decay rate of the moving average of a direction's importance."""
    beta2: Fraction = 0.85
    """Decay rate of the moving average of the uncertainty of that importance."""
    orth_reg_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the orthogonality regularization in the loss."""
    lora_alpha: PositiveInt = 16
    """The update is scaled by lora_alpha / init_r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """The same as for lora."""
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """The same as for lora."""

    @field_validator("init_r")
    @classmethod
    def _check_rank(cls, rank: int, info: ValidationInfo) -> int:
        if rank < info.data.get("target_r", 1):
            raise ValueError("should be at least target_r")
        return rank


class Bottleneck(Method):
    """Small two-layer networks, inserted into each layer of the base (bottleneck adapters)."""

    info: ClassVar[MethodInfo] = MethodInfo(
        limits=(Limits(merging="a bottleneck is not linear, so it cannot be expressed as a change of a weight"),),
        setup_code=f"{_SETUP}PEFT itself has no bottleneck adapters",
    )
    type: Literal["bottleneck"]
    variant: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """houlsby: one bottleneck after attention and one after the feed-forward network of each layer; pfeiffer: one after
    the feed-forward network; parallel: one parallel to the feed-forward network."""
    reduction_factor: PositiveInt | None = None
    """Hidden size of the base divided by the hidden size of the bottleneck; null means 16 (parallel: 2)."""
    activation: Literal["relu", "gelu", "silu", "tanh"] | None = None
    """Activation function; null means relu (houlsby: silu)."""
    scaling: Annotated[float, Field(gt=0)] | None = None
    """Factor that scales the update; null means 1 (parallel: 4)."""
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Names, or name suffixes, of the modules that get a bottleneck; null uses the default of the base's architecture,
    if it is known."""
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """Indices of the layers to adapt, starting at 0; null adapts all layers."""

    @property
    def default_learning_rate(self) -> float:
        """See `Method`."""
        return {"houlsby": 3e-3, "pfeiffer": 1e-2, "parallel": 1e-3}[self.variant]

    @property
    def few_rows_factor(self) -> float:
        """See `MethodInfo`."""
        return {"houlsby": 3.0, "pfeiffer": 0.3, "parallel": 1.0}[self.variant]


class Ia3(Method):
    """Trained factors that scale the keys, the values and the inner activations of feed-forward networks ((IA)³)."""

    info: ClassVar[MethodInfo] = MethodInfo(learning_rate=3e-2)  # few parameters need large steps
    type: Literal["ia3"]
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Names, or name suffixes, of the Linear layers whose outputs are scaled; null uses the key and value layers."""
    feedforward_modules: list[str] = []
    """With target_modules: those of its Linear layers whose inputs are scaled instead of their outputs."""

    @field_validator("feedforward_modules")
    @classmethod
    def _need_target_modules(cls, modules: list[str], info: ValidationInfo) -> list[str]:
        if modules and not info.data.get("target_modules"):
            raise ValueError("should come with target_modules")
        return modules


class Prefix(Method):
    """Trained keys and values before those of each self-attention; they have no position and use no input positions."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=3e-2,
        few_rows_factor=3,
        limits=(Limits(merging="a prefix cannot be expressed as a change of a weight"),),
        setup_code=f"{_SETUP}PEFT's own prefixes have another format",
    )
    type: Literal["prefix"]
    num_virtual_tokens: PositiveInt = 16
    """Number of trained keys, and of trained values, in each layer."""
    prefix_projection: bool = False
    """Compute the keys and values by a small network from trained embeddings; both are saved in the adapter."""
    encoder_hidden_size: PositiveInt | None = None
    """With prefix_projection: the hidden size of that network; null uses the size of the keys."""
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Names, or name suffixes, of the self-attention modules; null uses the default of the base's architecture, if it
    is known."""
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """Indices of the layers to adapt, starting at 0; null adapts all layers."""

    @field_validator("encoder_hidden_size")
    @classmethod
    def _need_projection(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size and not info.data.get("prefix_projection"):
            raise ValueError("should come with prefix_projection: true")
        return size


class VirtualTokens(Method):
    """Trained embeddings that are prepended to each input."""

    num_virtual_tokens: PositiveInt = 16
    """Number of trained embeddings that are prepended to each input; they count toward its maximum length."""

    @property
    def input_tokens(self) -> int:
        """See `Method`."""
        return self.num_virtual_tokens


class Prompt(VirtualTokens):
    """Trained embeddings that are prepended to each input, initialized from random tokens of the vocabulary (prompt
    tuning)."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=1e-1,
        limits=(Limits(encoder_decoder=_ONE_INPUT.format("prompt"), merging=_VIRTUAL_TOKENS),),
        supports_mixed_batches=False,
        setup_code=_OTHER_TOKENS,
    )
    type: Literal["prompt"]


class PTuning(VirtualTokens):
    """Trained embeddings that are prepended to each input, computed by a small network that is saved too (p-tuning)."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=3e-3,
        few_rows_factor=0.3,
        limits=(Limits(encoder_decoder=_ONE_INPUT.format("p-tuning"), merging=_VIRTUAL_TOKENS),),
        supports_mixed_batches=False,
        setup_code=_OTHER_TOKENS,
    )
    type: Literal["p-tuning"]
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    """MLP: three Linear layers; LSTM: a bidirectional LSTM of two layers, then two Linear layers."""
    encoder_hidden_size: PositiveInt | None = None
    """Hidden size of the network; null uses the size of the embeddings."""


class BitFit(Method):
    """Trained differences to all biases of the base, of Linear layers and of norms (BitFit)."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=1e-2, setup_code=f"{_SETUP}PEFT itself does not implement BitFit"
    )
    type: Literal["bitfit"]
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """Indices of the layers to adapt, starting at 0; null adapts all layers."""


class LnTuning(Method):
    """All norms of the base are trained; the adapter has its own copies of them."""

    info: ClassVar[MethodInfo] = MethodInfo(learning_rate=1e-2)
    type: Literal["ln-tuning"]
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """Indices of the layers to adapt, starting at 0; null adapts all layers."""


class Head(Method):
    """Only the head is trained; the base is unchanged, and its layers run without dropout."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=3e-2,
        limits=(
            Limits(
                base_head="'head' trains only a new head, and this task uses the base's own.",
                start_from="'head' has no delta that another adapter could initialize.",
                contrastive="contrastive training changes the states of the base, and 'head' trains only the head.",
            ),
        ),
        card_note="The base is unchanged: only its head is new.",
    )
    type: Literal["head"]


class LastLayers(Method):
    """The last layers of the base and the head are trained; the adapter contains these layers."""

    info: ClassVar[MethodInfo] = MethodInfo(
        few_rows_factor=3,
        limits=(Limits(quantization={"8bit": _OWN_WEIGHTS, "4bit": _OWN_WEIGHTS}),),
    )
    type: Literal["last-layers"]
    layers: PositiveInt = 1
    """Number of layers to train."""

    @property
    def freezes_lower_layers(self) -> bool:
        """See `Method`."""
        return True


class Full(Method):
    """All weights of the base are trained; the adapter contains them all."""

    info: ClassVar[MethodInfo] = MethodInfo(
        learning_rate=1e-4,
        limits=(
            Limits(
                quantization={"8bit": _OWN_WEIGHTS, "4bit": _OWN_WEIGHTS},
                encoder_decoder="'full' trains each module separately, but encoder and decoder share their embeddings.",
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
