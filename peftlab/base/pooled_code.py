"""Python code that builds a `PooledSequenceClassifier` with plain torch and Transformers, for model cards."""

from typing import TYPE_CHECKING

from peftlab.base.pooled_model import OUTPUT_LAYER, pooled_size
from peftlab.recipe import HeadPooling, Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftlab.tasks.heads import Head

IMPORTS = """\
from transformers import AutoModel
from transformers.modeling_outputs import SequenceClassifierOutput"""
_CODE = """\
head_labels = {head_labels}


class {name}(torch.nn.Module):
{property}    def __init__(self):
        super().__init__()
        self.{prefix} = AutoModel.from_pretrained({backbone})
        self.config = self.{prefix}.config
{quantized}        self.{output_layer} = torch.nn.Linear({width}, {count})

    def forward(self, attention_mask, {extra}**inputs):
        states = self.{prefix}(attention_mask=attention_mask, **inputs).last_hidden_state
        {pooled}
        return SequenceClassifierOutput(logits=self.{output_layer}(pooled))
"""
_POOLED: dict[HeadPooling, str] = {
    "mean": """\
mask = attention_mask.unsqueeze(-1)
        pooled = (states * mask).sum(1) / mask.sum(1)""",
    "max": """\
padding = attention_mask.unsqueeze(-1) == 0
        pooled = states.masked_fill(padding, -torch.inf).amax(1)""",
    "last": """\
last = (attention_mask * torch.arange(states.shape[1], device=states.device)).argmax(1)
        pooled = states[torch.arange(len(states)), last]""",
    "entity-start": """\
# entity_positions: the tokens of the first @ and the first # marker, (batch, 2)
        pooled = states[torch.arange(len(states)).unsqueeze(1), entity_positions].flatten(1)""",
}
_FLAGS: dict[Quantization, str] = {"8bit": "is_loaded_in_8bit", "4bit": "is_loaded_in_4bit"}
"""Attributes of a model that PEFT reads to wrap its layers."""


def pooled_model_code(
    model: "PreTrainedModel",
    head: "Head",
    backbone: str,
    quantization: Quantization | None = None,
    *,
    needs_base_model: bool = False,
) -> str:
    """A class that is built without arguments and computes the logits of `model`, which has the pooled `head`.

    The code needs `torch` and `IMPORTS`; `backbone` are the arguments of `AutoModel.from_pretrained`. Some of
    peftlab's tuners need the attribute `base_model` of Transformers' classes.
    """
    assert head.pooling
    base_model = f"    base_model = property(lambda self: self.{model.base_model_prefix})  # for peftlab's tuner\n\n"
    return _CODE.format(
        head_labels=head.labels,
        name=type(model).__name__,
        prefix=model.base_model_prefix,
        property=base_model if needs_base_model else "",
        backbone=backbone,
        quantized=f"        self.{_FLAGS[quantization]} = True  # for PEFT\n" if quantization else "",
        output_layer=OUTPUT_LAYER,
        width=pooled_size(model.config, head.pooling),
        count=len(head.labels),
        extra="entity_positions, " if head.pooling == "entity-start" else "",
        pooled=_POOLED[head.pooling],
    )
