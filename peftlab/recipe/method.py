"""What every method's section has: common keys, and what is known of the method besides its keys."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peftlab.recipe.types import Quantization, Section


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a method, or one value of one of its keys, cannot be combined with, each with the reason.

    An empty reason means that the combination works.
    """

    name: str = ""
    """What messages call it; empty takes the method's type."""
    key: str = "type"
    """The key that it depends on; `type` stands for the method as such."""
    value: Any = None
    """The value of `key` that has these limits; None stands for any value but null, false and empty ones."""
    quantization: Mapping[Quantization, str] = field(default_factory=dict)
    only_training: bool = False
    """Whether adapters that were trained elsewhere can be served in spite of `quantization`."""
    base_head: str = ""
    """Tasks without a new head, which use the base's own, as language models do."""
    encoder_decoder: str = ""
    """Bases with an encoder and a decoder, as for translation."""
    start_from: str = ""
    """Beginning with the weights of a published adapter."""
    sharding: str = ""
    """Training in which each process holds a part of the base."""
    merging: str = ""
    """Adding the delta to the base's weights."""

    def apply_to(self, settings: Mapping[str, Any]) -> bool:
        """Whether a section, or a configuration of PEFT, with these `settings` has the limits."""
        found = settings.get(self.key)
        return self.key == "type" or (bool(found) if self.value is None else found == self.value)


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """What is known of a method besides its keys; stands nowhere else."""

    learning_rate: float = 1e-3
    """The usual one: the best of a small grid on validation rows of two sample sets (decisions 0014 and 0029)."""
    limits: tuple[Limits, ...] = ()
    supports_mixed_batches: bool = True
    """Whether rows of other adapters can go through the base in the same forward pass.

    A method that changes single modules of the base can: each row takes its own adapter's modules. One that changes the
    base's forward as a whole, as virtual tokens do, has a forward pass of its own.
    """
    peft_supports_mixed_batches: bool = False
    """Whether plain PEFT can mix rows of several adapters of this method by `adapter_names`."""
    width_divisor: str = ""
    """The field of PEFT's configuration that must divide the widths of all adapted layers."""
    size_hint: str = ""
    """What to do where an adapter's file would be larger than its base's."""
    setup_code: str = ""
    """The line of Python by which plain PEFT learns how to load this method's adapters; empty where it needs none."""
    card_note: str = ""
    """A sentence for the model card on what the adapter holds."""

    @property
    def merge_error(self) -> str:
        """Why the delta cannot be added to the base's weights; empty where it can."""
        return next((limits.merging for limits in self.limits if limits.merging), "")

    def limits_for(self, settings: Mapping[str, Any]) -> Iterator[Limits]:
        """The limits that apply to a section, or a configuration of PEFT, with these `settings`."""
        return (limits for limits in self.limits if limits.apply_to(settings))

    def quantization_error(
        self, method: str, settings: Mapping[str, Any], quantization: Quantization | None, *, serving: bool = False
    ) -> tuple[str, str] | None:
        """The key and the sentence that say why these `settings` do not go with a quantized base, if they do not.

        Args:
            method: The method's type.
            serving: The adapter is trained already.
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
    """The section of a method; a subclass gives `type` one literal value or several, and sets `info`."""

    info: ClassVar[MethodInfo] = MethodInfo()
    type: str
    start_from: str | None = None
    """A published adapter whose weights this one begins with, whatever its task: `name` or `name@version` in the store,
    or the path of its folder, relative to the recipe, as in ../adapters/name. Base, method and its shape must be the
    same; the head is taken only where task and labels are."""

    @classmethod
    def info_of(cls, method_type: str) -> MethodInfo:
        """What is known of a method that has this section class."""
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
        """What a recipe without `training.learning_rate` takes."""
        return self.info_of(self.type).learning_rate

    @property
    def input_tokens(self) -> int:
        """How many tokens of the longest input the method takes for itself."""
        return 0

    @property
    def freezes_lower_layers(self) -> bool:
        """Whether some layers below the lowest one that trains stay frozen."""
        return getattr(self, "layers_to_transform", None) is not None

    @property
    def has_trainable_tokens(self) -> bool:
        """Whether embeddings of single tokens train too."""
        return False
