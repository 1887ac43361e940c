"""The base class of all `method` sections: common keys, and facts about the method that are not keys."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peftlab.recipe.types import Quantization, Section


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a method, or one value of one of its keys, cannot be combined with, and why.

    An empty reason means that the combination works.
    """

    name: str = ""
    """The name in messages; empty means the method's type."""
    key: str = "type"
    """The key that the limits depend on; `type` means that they always apply to the method."""
    value: Any = None
    """The value of `key` that has these limits; None means any value except null, false and empty ones."""
    quantization: Mapping[Quantization, str] = field(default_factory=dict)
    only_training: bool = False
    """Whether `quantization` limits only training, so that trained adapters can still be served."""
    base_head: str = ""
    """Why it does not work for tasks that use the base's own head, such as causal-lm."""
    encoder_decoder: str = ""
    """Why it does not work for encoder-decoder models."""
    start_from: str = ""
    """Why training cannot start from the weights of a published adapter."""
    sharding: str = ""
    """Why it does not work with fsdp and deepspeed, where each process keeps a shard of the base."""
    freeze: str = ""
    """Why a part of the delta cannot be frozen."""
    contrastive: str = ""
    """Why contrastive training (`training.few_shot`) does not work."""
    merging: str = ""
    """Why the delta cannot be merged into the base's weights."""

    def apply_to(self, settings: Mapping[str, Any]) -> bool:
        """Whether the limits apply to a section, or a PEFT configuration, with these `settings`."""
        found = settings.get(self.key)
        return self.key == "type" or (bool(found) if self.value is None else found == self.value)


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """All facts about a method that are not keys of its section."""

    learning_rate: float = 1e-3
    """The usual one: the best of a small grid on validation rows of two sample sets (decisions 0014 and 0029)."""
    few_rows_factor: float = 1.0
    """The best learning rate for 200 rows over the usual one, where it scored better (decisions 0029 and 0038)."""
    limits: tuple[Limits, ...] = ()
    supports_mixed_batches: bool = True
    """Whether rows of this adapter and of other adapters can share a forward pass of the base.

    True for methods that change single modules of the base: each row uses the modules of its own adapter. False for
    methods that change the input of the base, such as virtual tokens: their rows need a separate forward pass.
    """
    peft_supports_mixed_batches: bool = False
    """Whether plain PEFT can mix rows of several adapters of this method by `adapter_names`."""
    width_divisor: str = ""
    """The field of the PEFT configuration that must divide the widths of all adapted layers."""
    size_hint: str = ""
    """A hint for adapters whose file would be larger than the base's."""
    setup_code: str = ""
    """The line of Python that plain PEFT needs before it can load adapters of this method; empty if it needs none."""
    card_note: str = ""
    """A sentence for the model card about what the adapter contains."""

    @property
    def merge_error(self) -> str:
        """Why the delta cannot be merged into the base's weights; empty if it can."""
        return next((limits.merging for limits in self.limits if limits.merging), "")

    def limits_for(self, settings: Mapping[str, Any]) -> Iterator[Limits]:
        """The limits that apply to a section, or a PEFT configuration, with these `settings`."""
        return (limits for limits in self.limits if limits.apply_to(settings))

    def quantization_error(
        self, method: str, settings: Mapping[str, Any], quantization: Quantization | None, *, serving: bool = False
    ) -> tuple[str, str] | None:
        """The key and the reason why these `settings` cannot be used with a quantized base; None if they can.

        Args:
            method: The method's type.
            serving: Check for serving a trained adapter, not for training.
        """
        if quantization is None:
            return None
        for limits in self.limits_for(settings):
            reason = limits.quantization.get(quantization)
            if reason and not (serving and limits.only_training):
                name = limits.name or method
                return limits.key, f"'{name}' does not go with a base in {quantization}: {reason}."
        return None


class Method(Section):
    """The section of a method; a subclass declares the literal values of `type`, and sets `info`."""

    info: ClassVar[MethodInfo] = MethodInfo()
    type: str
    start_from: str | None = None
    """Initialize from the weights of this published adapter, of any task: `name` or `name@version` in the store, or the
    path of its folder, relative to the recipe, as in ../adapters/name. Base, method and the shapes of the weights must
    be the same. The head is used only if the task and the labels are the same; otherwise it is newly initialized."""

    @classmethod
    def info_of(cls, method_type: str) -> MethodInfo:
        """The facts about a method that uses this section class."""
        return cls.info

    @property
    def limits(self) -> list[Limits]:
        """The limits that apply to this section."""
        return list(self.info_of(self.type).limits_for(self.model_dump()))

    def quantization_error(self, quantization: Quantization | None) -> tuple[str, str] | None:
        """See `MethodInfo`."""
        return self.info_of(self.type).quantization_error(self.type, self.model_dump(), quantization)

    @property
    def default_learning_rate(self) -> float:
        """The usual learning rate: that of a recipe with many rows that does not set `training.learning_rate`."""
        return self.info_of(self.type).learning_rate

    @property
    def few_rows_factor(self) -> float:
        """See `MethodInfo`."""
        return self.info_of(self.type).few_rows_factor

    @property
    def input_tokens(self) -> int:
        """The number of input positions that the method's virtual tokens use."""
        return 0

    @property
    def freezes_lower_layers(self) -> bool:
        """Whether layers below the lowest trainable one stay frozen."""
        return getattr(self, "layers_to_transform", None) is not None

    @property
    def has_trainable_tokens(self) -> bool:
        """Whether embeddings of single tokens are trained too."""
        return False
