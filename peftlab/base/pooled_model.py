"""A sequence classifier whose head pools the token states of the base, for every architecture of Transformers.

Transformers' own classes read one token ([CLS], or the last one) through layers that are newly initialized. Bases that
were trained to give a text its embedding by mean pooling, such as those of Sentence Transformers, say little in that
token. Here the head is dropout and one Linear on pooled states:

    mean, max       over all tokens that are no padding
    last            the state of the last token that is no padding
    entity-start    the states at two positions, concatenated (Baldini Soares et al. 2019, arXiv:1906.03158)
"""

from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, cast

from peftlab.imports import torch, transformers
from peftlab.recipe import HeadPooling
from peftlab.tasks.inputs.entity_markers import ENTITY_POSITIONS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

OUTPUT_LAYER = "pooled_classifier"
"""The module with the head's weights. No class of Transformers has it, so none can take the weights for its own."""
DROPOUT_KEYS = ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob")
"""Keys under which configurations keep the dropout of a classifier, the first that has a number counts."""


class PooledSequenceClassifier:
    """The methods of a pooled classifier; `pooled_class` combines them with the `PreTrainedModel` of an architecture.

    The backbone is the child named by `base_model_prefix`, as in Transformers' own classes.
    """

    pooling: ClassVar[HeadPooling]
    backbone_class: ClassVar[Any]

    def __init__(self, config: "PreTrainedConfig") -> None:
        super().__init__(config)  # type: ignore[call-arg]
        model = cast(Any, self)
        setattr(model, model.base_model_prefix, _build_backbone(self.backbone_class, config))
        model.dropout = torch.nn.Dropout(_classifier_dropout(config))
        setattr(model, OUTPUT_LAYER, torch.nn.Linear(pooled_size(config, self.pooling), config.num_labels))
        model.post_init()

    def forward(
        self, attention_mask: "Tensor | None" = None, entity_positions: "Tensor | None" = None, **inputs: Any
    ) -> Any:
        """Logits, (batch, labels); `inputs` are those of the backbone, `entity_positions` are (batch, 2)."""
        model = cast(Any, self)
        output = getattr(model, model.base_model_prefix)(attention_mask=attention_mask, **inputs)
        states = output.last_hidden_state
        pooled = pool(states, attention_mask, self.pooling, entity_positions)
        logits = getattr(model, OUTPUT_LAYER)(model.dropout(pooled))
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=logits)


def pool(
    states: "Tensor", mask: "Tensor | None", pooling: HeadPooling, entity_positions: "Tensor | None" = None
) -> "Tensor":
    """Pool token states, (batch, tokens, hidden) → (batch, hidden), or (batch, 2 · hidden) for entity-start.

    Args:
        states: The last hidden states of the backbone.
        mask: What is no padding, (batch, tokens), on either side; None if there is no padding.
        pooling: See above.
        entity_positions: For entity-start: two positions per row, (batch, 2), counted with padding.

    Raises:
        ValueError: entity-start without positions.
    """
    if pooling == "entity-start":
        if entity_positions is None:
            raise ValueError(f"the head reads the states at {ENTITY_POSITIONS}, (batch, 2), which are missing")
        return states[_row_numbers(states), entity_positions].flatten(1)
    real = torch.ones(states.shape[:2], device=states.device) if mask is None else mask
    if pooling == "last":
        last = (real.bool() * torch.arange(1, states.shape[1] + 1, device=states.device)).argmax(1, keepdim=True)
        return states[_row_numbers(states), last].squeeze(1)
    tokens = real.bool().unsqueeze(-1)
    if pooling == "max":
        return states.masked_fill(~tokens, torch.finfo(states.dtype).min).amax(1)
    mean = states.float().masked_fill(~tokens, 0).sum(1) / tokens.sum(1).clamp(min=1)
    return mean.to(states.dtype)


def pooled_size(config: "PreTrainedConfig", pooling: HeadPooling) -> int:
    """The size of the pooled states of a row."""
    return int(config.hidden_size) * (2 if pooling == "entity-start" else 1)


def _row_numbers(states: "Tensor") -> "Tensor":
    """0, 1, … as a column, (batch, 1), to index each row of `states` at its own positions."""
    return torch.arange(len(states), device=states.device).unsqueeze(1)


@cache
def pooled_class(config_class: Any, pooling: HeadPooling) -> Any:
    """The pooled classifier of an architecture: a subclass of its `PreTrainedModel`, with a head that pools.

    Raises:
        KeyError: Transformers has no backbone for this configuration.
    """
    backbone_class = _backbone_class(config_class)
    parent = next(base for base in backbone_class.__mro__[1:] if issubclass(base, transformers.PreTrainedModel))
    name = f"Pooled{parent.__name__.removesuffix('PreTrainedModel')}ForSequenceClassification"
    # Transformers looks into the module of a class to see whether its attention can be replaced
    members = {"pooling": pooling, "backbone_class": backbone_class, "__module__": parent.__module__}
    return type(name, (PooledSequenceClassifier, parent), members)


def _backbone_class(config_class: Any) -> Any:
    found = transformers.MODEL_MAPPING[config_class]
    return found[0] if isinstance(found, tuple) else found


def _build_backbone(backbone_class: type["PreTrainedModel"], config: "PreTrainedConfig") -> "PreTrainedModel":
    """A backbone without the pooler that BERT and its relatives have, because nothing would read it."""
    has_pooler = "add_pooling_layer" in signature(backbone_class.__init__).parameters
    return backbone_class(config, **({"add_pooling_layer": False} if has_pooler else {}))


def _classifier_dropout(config: "PreTrainedConfig") -> float:
    values = (getattr(config, key, None) for key in DROPOUT_KEYS)
    return next((float(value) for value in values if value is not None), 0.0)
