"""Prompt tuning and P-tuning as a tuner of PEFT: trained embeddings, virtual tokens, in front of each input.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691) trains the embeddings as they are, P-tuning (Liu et al. 2021,
arXiv:2103.10385) the network that makes them. PEFT's own PROMPT_TUNING and P_TUNING lengthen the whole model's input,
so that labels of tokens, and spans, miss their tokens, a pooler gets a virtual one, and nothing trains on. Here the
base without its head is given the longer input, and what it returns is cut to the tokens that were asked about: heads
and labels never hear of it. Virtual tokens have the first positions; the others' move behind them.

Importing this module makes PEFT know the type INPUT_PROMPT, so that plain `PeftModel.from_pretrained` loads them.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from peft import PromptEmbedding, PromptEncoder, PromptEncoderConfig, PromptTuningConfig
from torch import Tensor, nn
from transformers.utils import ModelOutput

from peftlab.methods.tuners.custom_tuner import OwnConfig, OwnLayer, OwnModel, placed_as, register

PER_TOKEN = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids")
JOINED = ("last_hidden_state", "hidden_states", "pooler_output")


@dataclass
class PromptConfig(OwnConfig):
    """All that makes virtual tokens; every field is needed to load them again.

    Args:
        num_virtual_tokens: How many are put in front.
        width: Of the base's word embeddings.
        encoder: "none" (they begin as words drawn from the vocabulary), or the network that makes them: "MLP", "LSTM".
        encoder_hidden_size: Width of that network.
    """

    method: ClassVar[str] = "input_prompt"
    num_virtual_tokens: int = 0
    width: int = 0
    encoder: str = "none"
    encoder_hidden_size: int = 0


class PromptLayer(OwnLayer):
    """The word embedding of a base, with virtual tokens by adapter name."""

    unmergeable = "virtual tokens are inputs, not weights"
    adapter_layer_names = ("input_prompt_encoder",)
    input_prompt_encoder: nn.ModuleDict

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.input_prompt_encoder = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: PromptConfig) -> None:
        """Add virtual tokens."""
        words = self.get_base_layer()
        self.input_prompt_encoder[adapter_name] = placed_as(next(words.parameters()), _encoder(config, words))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The words' own embeddings: `PromptedForward` puts others before them."""
        return cast(Tensor, self.base_layer(*args, **kwargs))

    def tokens(self, names: Sequence[str]) -> Tensor:
        """The virtual tokens (tokens, width) of some adapters, one after the other."""
        return torch.cat([self._made(name) for name in names])

    def _made(self, name: str) -> Tensor:
        encoder: Any = self.input_prompt_encoder[name]
        rows = encoder.embedding.weight
        return cast(Tensor, encoder(torch.arange(len(rows), device=rows.device)))


def _encoder(config: PromptConfig, words: nn.Module) -> nn.Module:
    """(tokens,) → (tokens, width), by PEFT's own networks."""
    shape: dict[str, Any] = {
        "num_virtual_tokens": config.num_virtual_tokens,
        "token_dim": config.width,
        "num_transformer_submodules": 1,
    }
    if config.encoder == "none":
        return PromptEmbedding(PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **shape), words)
    kind, size = config.encoder, config.encoder_hidden_size
    config_of_peft = PromptEncoderConfig(encoder_reparameterization_type=kind, encoder_hidden_size=size, **shape)
    return Network(PromptEncoder(config_of_peft))


class Network(nn.Module):
    """PEFT's `PromptEncoder` by other names: where a base has a `head` to save, PEFT takes `mlp_head` for one too."""

    def __init__(self, encoder: PromptEncoder) -> None:
        super().__init__()
        self.embedding, self.layers = encoder.embedding, encoder.mlp_head
        self.recurrent = getattr(encoder, "lstm_head", None)

    def forward(self, tokens: Tensor) -> Tensor:
        """(tokens,) → (tokens, width)."""
        states = self.embedding(tokens)
        return cast(Tensor, self.layers(self.recurrent(states)[0] if self.recurrent is not None else states))


class PromptedForward:
    """In the place of the forward of a base without its head: the same, with virtual tokens in front of each row.

    It returns what it is asked for as if they were not there, but for attentions, which are told in full.
    """

    def __init__(self, layer: PromptLayer, backbone: nn.Module) -> None:
        self.layer, self.backbone = layer, backbone
        self.forward = backbone.forward
        self.names = list(inspect.signature(backbone.forward).parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's own forward.

        Raises:
            ValueError: an input tells something of each token that is not known of virtual ones, or is a mask of its
                own kind; or rows of several adapters share a cache.
        """
        given = dict(zip(self.names, args, strict=False)) | kwargs
        given = {name: value for name, value in given.items() if value is not None}
        rows = self.layer.by_row(len(_inputs(given)))
        if rows is None and not self.layer.active:
            return self.forward(*args, **kwargs)
        as_tuple = given.pop("return_dict", True) is False
        output = self._prompted(self.layer.active, given) if rows is None else self._by_row(rows, given)
        return output.to_tuple() if as_tuple else output

    def _by_row(self, rows: list[str | None], given: dict[str, Any]) -> ModelOutput:
        """One pass an adapter: the rows of a pass have equally many virtual tokens."""
        if given.get("past_key_values") is not None:
            raise ValueError("virtual tokens of several adapters do not go with a cache; set use_cache to False")
        given = given | ({"use_cache": False} if "use_cache" in self.names else {})
        outputs, places = [], []
        for name in dict.fromkeys(rows):
            mine = [i for i, other in enumerate(rows) if other == name]
            chosen = {key: _chosen(value, mine, len(rows)) for key, value in given.items()}
            outputs.append(self._prompted([name] if name else [], chosen))
            places += mine
        return _in_order(outputs, torch.tensor(places).argsort())

    def _prompted(self, names: Sequence[str], given: dict[str, Any]) -> ModelOutput:
        if not names:
            return cast(ModelOutput, self.forward(**given, return_dict=True))
        tokens, cache = self.layer.tokens(names), given.get("past_key_values")
        _check_inputs(given)
        if cache is not None and cache.get_seq_length():  # it holds the virtual tokens
            return cast(ModelOutput, self.forward(**_with_room(given, len(tokens)), return_dict=True))
        output = self.forward(**self._lengthened(given, tokens), return_dict=True)
        return self._shortened(output, len(tokens))

    def _lengthened(self, given: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
        """The base's arguments with `tokens` (tokens, width) in front."""
        longer, n = _with_room(given, len(tokens)), len(tokens)
        states = longer["inputs_embeds"] if "inputs_embeds" in longer else self.layer(longer.pop("input_ids"))
        longer["inputs_embeds"] = _in_front(tokens, states)
        if (kinds := longer.get("token_type_ids")) is not None:
            longer["token_type_ids"] = _in_front(kinds.new_zeros(n), kinds)
        if (positions := longer.get("position_ids")) is not None:
            longer["position_ids"] = _in_front(torch.arange(n, device=positions.device), positions)
        return longer

    def _shortened(self, output: Any, n: int) -> ModelOutput:
        """`output` without `n` virtual tokens, and pooled again from what is then the first."""
        output["last_hidden_state"] = output.last_hidden_state[:, n:]
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(states[:, n:] for states in output.hidden_states)
        if output.get("pooler_output") is not None:
            pooler: Any = self.backbone.pooler
            output["pooler_output"] = pooler(output.last_hidden_state)
        return cast(ModelOutput, output)


def _inputs(given: dict[str, Any]) -> Tensor:
    """(batch, tokens) or (batch, tokens, width)."""
    return cast(Tensor, given["input_ids"] if "input_ids" in given else given["inputs_embeds"])


def _check_inputs(given: dict[str, Any]) -> None:
    if (mask := given.get("attention_mask")) is not None and mask.dim() != 2:
        raise ValueError(f"virtual tokens go with a mask of (batch, tokens), not of {mask.dim()} dimensions")
    like = _inputs(given).shape[:2]
    for name, value in given.items():
        if name not in PER_TOKEN and isinstance(value, Tensor) and value.dim() > 1 and value.shape[:2] == like:
            raise ValueError(f"virtual tokens do not go with '{name}', of which they have none")


def _with_room(given: dict[str, Any], n: int) -> dict[str, Any]:
    """The base's arguments where `n` virtual tokens are in front of what was seen before."""
    roomy = dict(given)
    if (mask := given.get("attention_mask")) is not None:
        roomy["attention_mask"] = _in_front(mask.new_ones(n), mask)
    if (positions := given.get("position_ids")) is not None:
        roomy["position_ids"] = positions + n
    return roomy


def _in_front(front: Tensor, rows: Tensor) -> Tensor:
    """`front` (tokens, …) before each of `rows` (batch, tokens, …)."""
    return torch.cat([front.to(rows.dtype).expand(len(rows), *front.shape), rows], dim=1)


def _chosen(value: Any, rows: list[int], batch: int) -> Any:
    return value[rows] if isinstance(value, Tensor) and len(value) == batch else value


def _in_order(outputs: Sequence[Any], order: Tensor) -> ModelOutput:
    """Outputs of some rows each, put together: row `order[i]` of all is row i."""

    def joined(parts: Sequence[Any]) -> Any:
        if isinstance(parts[0], Tensor):
            return torch.cat(list(parts))[order.to(parts[0].device)]
        return tuple(joined(part) for part in zip(*parts, strict=True))

    fields = {name: [output[name] for output in outputs] for name in JOINED if outputs[0].get(name) is not None}
    return cast(ModelOutput, type(outputs[0])(**{name: joined(parts) for name, parts in fields.items()}))


class PromptModel(OwnModel):
    """A base whose word embedding is a `PromptLayer`, and whose forward a `PromptedForward`."""

    prefix = f"{PromptConfig.method}_"
    tuner_layer_cls = PromptLayer

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        super()._replace_module(parent, child_name, new_module, child)
        backbone: Any = self.model.base_model
        if isinstance(new_module, PromptLayer):
            backbone.forward = PromptedForward(new_module, backbone)
        else:
            del backbone.forward


register(PromptConfig, PromptModel)
