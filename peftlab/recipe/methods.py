"""The `method` section of a recipe: one class a method, whose fields are PEFT's."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from peftlab.recipe.types import Count, Positive, Section, Share


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


_OTHER_RATES = {
    "delora": 3e-5,
    **dict.fromkeys(("miss", "randlora"), 3e-4),
    **dict.fromkeys(("oft", "psoft", "shira"), 3e-3),
    **dict.fromkeys(("beft", "hira", "hra", "loha", "lokr", "supertuning", "vblora"), 1e-2),
    **dict.fromkeys(("fourierft", "road", "vera"), 3e-2),
    "c3a": 3e-1,
}
"""Usual learning rates that are not 1e-3: the best on one set, a step lower where the next step up learns nothing; see
0029."""


class OtherMethod(Method):
    """Any other method of PEFT that changes Linear layers; further keys are the fields of its configuration class."""

    model_config = ConfigDict(extra="allow")

    type: Literal[
        "beft", "c3a", "deft", "delora", "fourierft", "glora", "gralora", "hira", "hra", "lily", "loha", "lokr", "miss",
        "oft", "peanut", "psoft", "randlora", "road", "shira", "supertuning", "vblora", "vera", "waveft",
    ]  # fmt: skip
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """As for lora."""
    layers_to_transform: list[Count] | Count | None = None
    """As for lora."""

    @property
    def usual_learning_rate(self) -> float:
        """See `Method`."""
        return _OTHER_RATES.get(self.type, super().usual_learning_rate)

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


class LnTuning(Method):
    """Every norm of the base trains, as a copy of the adapter's own."""

    type: Literal["ln-tuning"]
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


_CALLED = "peftlab calls it"
_REWRITES = "it rewrites the base's own weights, which others are served from"
_NAMELESS = "its files name no layer, so that nothing tells which ones it changes"
_BY_TASK = "it needs a task's number with each row"
NOT_TAKEN = {
    "adamss": "its files do not say how it has clustered the rows of a weight, and another machine may cluster others",
    "adaption_prompt": "PEFT has it for the attention of Llama, Mistral and GPT-2 alone",
    "boft": "it compiles a CUDA extension when it is used; oft is its simpler form",
    "bone": f"{_CALLED} miss, as PEFT does now",
    "cartridge": "it learns from what the base says of one long text, not from rows with answers",
    "cpt": "its prompt is made of labelled examples, which a recipe's rows are not",
    "frod": _REWRITES,
    "ln_tuning": f"{_CALLED} ln-tuning",
    "multitask_prompt_tuning": _BY_TASK,
    "osf": _REWRITES,
    "p_tuning": f"{_CALLED} p-tuning",
    "poly": _BY_TASK,
    "prefix_tuning": f"{_CALLED} prefix",
    "prompt_tuning": f"{_CALLED} prompt",
    "pvera": "it draws numbers, and does not answer alike when it is loaded again",
    "shadow": "it is a second network with a loss of its own, beside decoders alone",
    "tinylora": _NAMELESS,
    "trainable_tokens": "lora has it as method.trainable_token_indices",
    "unilora": _NAMELESS,
    "xlora": "it mixes adapters that are there; peftlab serves each row through its own",
}
"""Names of PEFT that are no type here, and why not (0014, 0018). The tests hold this against PEFT's list."""


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
    | OtherMethod
    | BitFit
    | LnTuning
    | Head
    | LastLayers
    | Full,
    Field(discriminator="type"),
    BeforeValidator(_lora_by_default),
]
