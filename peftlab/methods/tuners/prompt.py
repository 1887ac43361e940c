"""Prompt tuning and P-tuning as a PEFT tuner: trained embeddings (virtual tokens) are put before each input.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691) trains the embeddings directly, P-tuning (Liu et al. 2021,
arXiv:2103.10385) the network that computes them. PEFT's own PROMPT_TUNING and P_TUNING extend the input of the whole
model: token labels and spans then miss their tokens, a pooler reads a virtual token, and training cannot be continued.
Here only the backbone gets the longer input, and virtual tokens are removed from its output, so heads and labels never
see them. Virtual tokens have the first positions; the positions of all other tokens are shifted.

Importing this module registers the type INPUT_PROMPT, so that plain `PeftModel.from_pretrained` loads its adapters.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from peft import PromptEmbedding, PromptEncoder, PromptEncoderConfig, PromptTuningConfig
from torch import Tensor, nn
from transformers.utils import ModelOutput

from peftlab.methods.tuners.custom_tuner import (
    CustomTunerConfig,
    CustomTunerLayer,
    CustomTunerModel,
    move_like,
    register_tuner,
)
from peftlab.recipe import Prompt

TOKEN_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids")


@dataclass
class PromptConfig(CustomTunerConfig):
    """PEFT's configuration of virtual tokens; loading needs every field.

    Args:
        num_virtual_tokens: Number of virtual tokens in front of each input.
        width: Size of the base's word embeddings.
        encoder: The network that computes them: "MLP" or "LSTM"; "none" starts from random words of the vocabulary.
        encoder_hidden_size: Hidden size of that network.
    """

    method: ClassVar[str] = "input_prompt"
    num_virtual_tokens: int = 0
    width: int = 0
    encoder: str = "none"
    encoder_hidden_size: int = 0


class PromptLayer(CustomTunerLayer):
    """The word embedding of the base, and each adapter's virtual tokens."""

    merge_error = Prompt.info.merge_error
    adapter_layer_names = ("input_prompt_encoder",)
    input_prompt_encoder: nn.ModuleDict

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.input_prompt_encoder = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: PromptConfig) -> None:
        """Add an adapter's virtual tokens."""
        embedding = self.get_base_layer()
        encoder = _build_encoder(config, embedding)
        self.input_prompt_encoder[adapter_name] = move_like(next(embedding.parameters()), encoder)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The embeddings of the real tokens: `PromptForward` adds the virtual ones."""
        return cast(Tensor, self.base_layer(*args, **kwargs))

    def virtual_tokens(self, names: Sequence[str]) -> Tensor:
        """The embeddings (virtual tokens, width) of some adapters, one after the other."""
        return torch.cat([self._encode(name) for name in names])

    def _encode(self, name: str) -> Tensor:
        encoder: Any = self.input_prompt_encoder[name]
        rows = encoder.embedding.weight
        return cast(Tensor, encoder(torch.arange(len(rows), device=rows.device)))


def _build_encoder(config: PromptConfig, embedding: nn.Module) -> nn.Module:
    """One of PEFT's networks: (tokens,) → (tokens, width)."""
    shape: dict[str, Any] = {
        "num_virtual_tokens": config.num_virtual_tokens,
        "token_dim": config.width,
        "num_transformer_submodules": 1,
    }
    if config.encoder == "none":
        return PromptEmbedding(PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **shape), embedding)
    encoder_config = PromptEncoderConfig(
        encoder_reparameterization_type=config.encoder, encoder_hidden_size=config.encoder_hidden_size, **shape
    )
    return PromptNetwork(PromptEncoder(encoder_config))


class PromptNetwork(nn.Module):
    """PEFT's `PromptEncoder` with other names: PEFT would save its `mlp_head` with every head called `head`."""

    def __init__(self, encoder: PromptEncoder) -> None:
        super().__init__()
        self.embedding, self.layers = encoder.embedding, encoder.mlp_head
        self.recurrent = getattr(encoder, "lstm_head", None)

    def forward(self, tokens: Tensor) -> Tensor:
        """(tokens,) → (tokens, width)."""
        states = self.embedding(tokens)
        return cast(Tensor, self.layers(self.recurrent(states)[0] if self.recurrent is not None else states))


class PromptForward:
    """Replaces the forward of the base without its head: the same, with virtual tokens in front of each row.

    Outputs have no virtual tokens, except attentions, which include them.
    """

    def __init__(self, layer: PromptLayer, backbone: nn.Module) -> None:
        self.layer, self.backbone = layer, backbone
        self.forward = backbone.forward
        self.names = list(inspect.signature(backbone.forward).parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's own forward.

        Raises:
            ValueError: an input has a value for each token, which virtual tokens lack, or the mask has another shape.
        """
        if not self.layer.active:
            return self.forward(*args, **kwargs)
        inputs = dict(zip(self.names, args, strict=False)) | kwargs
        inputs = {name: value for name, value in inputs.items() if value is not None}
        as_tuple = inputs.pop("return_dict", True) is False
        output = self._forward_with_prompt(self.layer.active, inputs)
        return output.to_tuple() if as_tuple else output

    def _forward_with_prompt(self, names: Sequence[str], inputs: dict[str, Any]) -> ModelOutput:
        tokens, cache = self.layer.virtual_tokens(names), inputs.get("past_key_values")
        _check_inputs(inputs)
        if cache is not None and cache.get_seq_length():  # the cache contains the virtual tokens
            return cast(ModelOutput, self.forward(**_shift_positions(inputs, len(tokens)), return_dict=True))
        output = self.forward(**self._prepend_tokens(inputs, tokens), return_dict=True)
        return self._remove_tokens(output, len(tokens))

    def _prepend_tokens(self, inputs: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
        """The base's arguments with `tokens` (virtual tokens, width) in front."""
        longer, n = _shift_positions(inputs, len(tokens)), len(tokens)
        states = longer["inputs_embeds"] if "inputs_embeds" in longer else self.layer(longer.pop("input_ids"))
        longer["inputs_embeds"] = _prepend(tokens, states)
        if (token_types := longer.get("token_type_ids")) is not None:
            longer["token_type_ids"] = _prepend(token_types.new_zeros(n), token_types)
        if (positions := longer.get("position_ids")) is not None:
            longer["position_ids"] = _prepend(torch.arange(n, device=positions.device), positions)
        return longer

    def _remove_tokens(self, output: Any, n: int) -> ModelOutput:
        """`output` without its first `n` tokens; the pooler reads the first real one."""
        output["last_hidden_state"] = output.last_hidden_state[:, n:]
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(states[:, n:] for states in output.hidden_states)
        if output.get("pooler_output") is not None:
            pooler: Any = self.backbone.pooler
            output["pooler_output"] = pooler(output.last_hidden_state)
        return cast(ModelOutput, output)


def _check_inputs(inputs: dict[str, Any]) -> None:
    """Raise ValueError if an input has a value for each token, which virtual tokens lack."""
    if (mask := inputs.get("attention_mask")) is not None and mask.dim() != 2:
        raise ValueError(f"virtual tokens need a mask of shape (batch, tokens), not of {mask.dim()} dimensions")
    shape = (inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]).shape[:2]
    for name, value in inputs.items():
        if name not in TOKEN_INPUTS and isinstance(value, Tensor) and value.dim() > 1 and value.shape[:2] == shape:
            raise ValueError(f"virtual tokens do not work with '{name}', because they have no value for it")


def _shift_positions(inputs: dict[str, Any], n: int) -> dict[str, Any]:
    """The base's arguments, with mask and positions for `n` virtual tokens in front of all tokens seen so far."""
    shifted = dict(inputs)
    if (mask := inputs.get("attention_mask")) is not None:
        shifted["attention_mask"] = _prepend(mask.new_ones(n), mask)
    if (positions := inputs.get("position_ids")) is not None:
        shifted["position_ids"] = positions + n
    return shifted


def _prepend(front: Tensor, rows: Tensor) -> Tensor:
    """`front` (tokens, …) in front of each of `rows` (batch, tokens, …)."""
    return torch.cat([front.to(rows.dtype).expand(len(rows), *front.shape), rows], dim=1)


class PromptModel(CustomTunerModel):
    """A base whose word embedding is a `PromptLayer`, and whose forward is a `PromptForward`."""

    prefix = f"{PromptConfig.method}_"
    tuner_layer_cls = PromptLayer

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        super()._replace_module(parent, child_name, new_module, child)
        backbone: Any = self.model.base_model
        if isinstance(new_module, PromptLayer):
            backbone.forward = PromptForward(new_module, backbone)
        else:
            del backbone.forward


register_tuner(PromptConfig, PromptModel)
