"""PEFT's methods that peftlab uses as they are, by PEFT's names, and those that it does not support."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict

from peftlab.recipe.method import Limits, Method, MethodInfo
from peftlab.recipe.types import NonNegativeInt, Quantization


def _limits(quantization: Mapping[Quantization, str]) -> tuple[Limits, ...]:
    return (Limits(quantization=quantization),)


_NO_QUANTIZED_LAYERS = _limits(
    dict.fromkeys(("8bit", "4bit"), "PEFT has no form of it for quantized layers"),
)
_PACKED_SHAPE = _limits({"4bit": "PEFT takes the shape of the packed weight for the layer's"})

PEFT_METHODS = {
    "beft": MethodInfo(learning_rate=1e-2, few_rows_factor=3),
    "c3a": MethodInfo(learning_rate=3e-1, limits=_NO_QUANTIZED_LAYERS, width_divisor="block_size"),
    "deft": MethodInfo(few_rows_factor=3, limits=_NO_QUANTIZED_LAYERS),
    "delora": MethodInfo(learning_rate=3e-5, limits=_NO_QUANTIZED_LAYERS),
    "fourierft": MethodInfo(learning_rate=3e-2, few_rows_factor=3),
    "glora": MethodInfo(few_rows_factor=3, limits=_NO_QUANTIZED_LAYERS),
    "gralora": MethodInfo(limits=_NO_QUANTIZED_LAYERS),
    "hira": MethodInfo(learning_rate=1e-2),
    "hra": MethodInfo(learning_rate=1e-2, limits=_NO_QUANTIZED_LAYERS),
    "lily": MethodInfo(few_rows_factor=3, limits=(Limits(merging="PEFT cannot merge it"),)),
    "loha": MethodInfo(learning_rate=1e-2, limits=_PACKED_SHAPE),
    "lokr": MethodInfo(learning_rate=1e-2, limits=_PACKED_SHAPE),
    "miss": MethodInfo(learning_rate=3e-4, few_rows_factor=3),
    "oft": MethodInfo(learning_rate=3e-3),
    "peanut": MethodInfo(few_rows_factor=3, limits=_NO_QUANTIZED_LAYERS),
    "psoft": MethodInfo(learning_rate=3e-3, limits=_NO_QUANTIZED_LAYERS),
    "randlora": MethodInfo(
        learning_rate=3e-4,
        size_hint="With method.save_projection: false, PEFT draws that part again when it loads the adapter.",
    ),
    "road": MethodInfo(learning_rate=3e-2, width_divisor="group_size"),
    "shira": MethodInfo(learning_rate=3e-3),
    "supertuning": MethodInfo(learning_rate=1e-2, limits=_NO_QUANTIZED_LAYERS),
    "vblora": MethodInfo(learning_rate=1e-2, width_divisor="vector_length"),
    "vera": MethodInfo(learning_rate=3e-2, few_rows_factor=3),
    "waveft": MethodInfo(),
}
"""Default learning rates are the best on one data set, one step lower if the next higher step failed; see decision
0029. `few_rows_factor` is set where the next higher rate scored more than a point better there."""

_RENAMED = "peftlab calls it"
_CHANGES_THE_BASE = "it changes the base's own weights, which other adapters share"
_NO_LAYER_NAMES = "its files do not name the layers that it changes"
_TASK_NUMBERS = "it needs a task id in each row"
UNSUPPORTED_PEFT_METHODS = {
    "adamss": "its files do not store the clusters of weight rows, and another machine may compute other clusters",
    "adaption_prompt": "PEFT supports it only for the attention of Llama, Mistral and GPT-2",
    "boft": "it compiles a CUDA extension when it is used; oft is the simpler variant",
    "bone": f"{_RENAMED} miss, as PEFT does now",
    "cartridge": "it is trained on the outputs of the base for one long text, not on rows with answers",
    "cpt": "it builds its prompt from labelled examples, which a recipe cannot express",
    "frod": _CHANGES_THE_BASE,
    "ln_tuning": f"{_RENAMED} ln-tuning",
    "multitask_prompt_tuning": _TASK_NUMBERS,
    "osf": _CHANGES_THE_BASE,
    "p_tuning": f"{_RENAMED} p-tuning",
    "poly": _TASK_NUMBERS,
    "prefix_tuning": f"{_RENAMED} prefix",
    "prompt_tuning": f"{_RENAMED} prompt",
    "pvera": "it draws random numbers, so its outputs differ each time it is loaded",
    "shadow": "it is a second network with its own loss, for decoders only",
    "tinylora": _NO_LAYER_NAMES,
    "trainable_tokens": "use lora with method.trainable_token_indices",
    "unilora": _NO_LAYER_NAMES,
    "xlora": "it mixes existing adapters, and peftlab serves each row with its own adapter",
}
"""PEFT's other methods, and why a recipe cannot name them (decisions 0014 and 0018). A test compares this with PEFT."""

if TYPE_CHECKING:
    PeftMethodType = str
else:
    PeftMethodType = Literal[tuple(PEFT_METHODS)]


class PeftMethod(Method):
    """Any other PEFT method that changes Linear layers; its other keys are the fields of the PEFT configuration
    class."""

    model_config = ConfigDict(extra="allow")

    type: PeftMethodType
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """The same as for lora."""
    layers_to_transform: list[NonNegativeInt] | NonNegativeInt | None = None
    """The same as for lora."""

    @classmethod
    def info_of(cls, method_type: str) -> MethodInfo:
        """See `Method`."""
        return PEFT_METHODS[method_type]

    @property
    def extras(self) -> dict[str, Any]:
        """The fields of the PEFT configuration that the recipe sets."""
        return dict(self.model_extra or {})
