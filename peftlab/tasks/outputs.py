"""How the outputs of features are computed: by one forward pass, or by generating text."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

from peftlab.tasks.inputs.features import Feature

if TYPE_CHECKING:
    from torch import Tensor

    from peftlab.tasks.inputs.inputs import Inputs

ReferenceForward = Callable[[Sequence[Feature]], Sequence[Any]]
"""Features → their outputs by the reference model."""
StopStringFinder = Callable[[Any], list[str]]
"""The inputs of a base model → strings that end a text."""


@dataclass(frozen=True)
class Continuation:
    """A generated text; `finished` is false if generation stopped at `max_new_tokens`."""

    text: str
    finished: bool


@dataclass(frozen=True)
class TextGeneration:
    """How an adapter generates text.

    `settings` and `forced_tokens` are arguments of Transformers' `generate`; `state` is the task's, which decides what
    `find_stop_strings` returns.
    """

    settings: Mapping[str, Any]
    find_stop_strings: StopStringFinder
    state: Mapping[str, Any]
    forced_tokens: Mapping[str, int]

    @property
    def key(self) -> str:
        """Equal for adapters whose texts can be generated in one batch."""
        return json.dumps([dict(self.settings), dict(self.state)], sort_keys=True)


class Outputs:
    """One forward pass per feature."""

    needs_reference = False
    """Whether scores need the outputs of a reference model, for features with labels."""
    not_averaged = "a vocabulary is not averaged"
    """Why the outputs of a base model's own head have no mean."""

    def generation(self, feature: Feature) -> TextGeneration | None:
        """How text is generated for this feature; None if a forward pass gives its output."""
        return None

    def chat_generation(self, adapter: str, task_type: str) -> TextGeneration:
        """How replies to chat messages are generated.

        Raises:
            ValueError: the task does not reply to messages, or not piece by piece.
        """
        _refuse_chat(adapter, task_type)

    def learned_stop_strings(self, inputs: "Inputs") -> list[str]:
        """The strings that end a reply in training; empty if replies are not generated, or if nothing ends them."""
        return []

    def attach_references(
        self, features: Sequence[Sequence[Feature]], forward_reference: ReferenceForward
    ) -> list[list[Feature]]:
        """The features of each example, with what decoding needs of the reference model's outputs."""
        return [list(windows) for windows in features]


class GeneratedOutputs(Outputs):
    """Generated text for features without labels, a forward pass for others."""

    not_averaged = "several adapters cannot generate one text"

    def __init__(self, generation: TextGeneration) -> None:
        self._generation = generation

    def generation(self, feature: Feature) -> TextGeneration | None:
        """See `Outputs.generation`."""
        return self._generation if feature.labels is None else None


class ChatOutputs(GeneratedOutputs):
    """Generated replies to chat messages; `find_learned` gives the strings that end a reply in training."""

    def __init__(self, generation: TextGeneration, find_learned: StopStringFinder) -> None:
        super().__init__(generation)
        self._find_learned = find_learned

    def learned_stop_strings(self, inputs: "Inputs") -> list[str]:
        """See `Outputs.learned_stop_strings`."""
        return self._find_learned(inputs)

    def chat_generation(self, adapter: str, task_type: str) -> TextGeneration:
        """See `Outputs.chat_generation`."""
        if self._generation.settings.get("num_beams", 1) > 1:
            raise ValueError(f"{adapter} uses beam search, which cannot be streamed; use predict")
        return self._generation


class ReferencedOutputs(ChatOutputs):
    """Outputs that are compared with those of a reference model, as preference tuning does: of the base model, or of
    the adapter that the run started from.

    `attach_reference` adds the reference model's output to a labelled feature.
    """

    needs_reference = True

    def __init__(
        self,
        generation: TextGeneration,
        find_learned: StopStringFinder,
        attach_reference: "Callable[[Feature, Tensor], Feature]",
    ) -> None:
        super().__init__(generation, find_learned)
        self._attach_reference = attach_reference

    def attach_references(
        self, features: Sequence[Sequence[Feature]], forward_reference: ReferenceForward
    ) -> list[list[Feature]]:
        """See `Outputs.attach_references`."""
        labelled = [feature for windows in features for feature in windows if feature.labels is not None]
        outputs = iter(forward_reference(labelled))
        return [
            [
                feature if feature.labels is None else self._attach_reference(feature, cast(Any, next(outputs)))
                for feature in windows
            ]
            for windows in features
        ]


def _refuse_chat(adapter: str, task_type: str) -> NoReturn:
    raise ValueError(f"{adapter} is for {task_type}; a chat needs an adapter of causal-lm or preference")
