"""Where the sub-layers of an architecture end: one line a model type, of which names are regular expressions.

`attention` and `feed_forward` end their sub-layers, before the residual is added. `after` is where one bottleneck a
layer goes: the norm behind the residual where a base normalizes last ("around-norm"), else the end of the feed-forward
network. `beside` holds the whole feed-forward network. `keys_and_values` are the attention's two projections, where
they are modules of their own. `self_attention` holds queries, keys and values, and goes with the form in which a prefix
gets into it (see `prefix_attention.FORMS`).
"""

import re
from dataclasses import dataclass, replace

LAYER = r"\.layers?\.\d+\."


@dataclass(frozen=True)
class Placement:
    """Names in one architecture, and the form (see `bottleneck_tuner.FORMS`) that goes with `after` and `beside`."""

    attention: str
    feed_forward: str
    after: tuple[str, str]
    beside: tuple[str, str] | None
    keys_and_values: str | None
    self_attention: tuple[str, str] | None

    def targets(self, variant: str, names: list[str]) -> tuple[list[str], str]:
        """The modules among `names` that `variant` changes, and in which form; none where it has no place."""
        pattern, form = {
            "houlsby": (f"{self.attention}|{self.feed_forward}", "after"),
            "pfeiffer": self.after,
            "parallel": self.beside or ("(?!)", ""),
        }[variant]
        return _fitting(pattern, names), form

    def attending(self, names: list[str]) -> tuple[list[str], str]:
        """The self-attention modules among `names`, and in which form a prefix gets into them; none where none can."""
        pattern, form = self.self_attention or ("(?!)", "")
        return _fitting(pattern, names), form

    def rescaled(self, names: list[str]) -> tuple[list[str], list[str]]:
        """What (IA)³ rescales: outputs of the first, keys and values, and inputs of the second, feed-forward ends."""
        return _fitting(self.keys_and_values or "(?!)", names), _fitting(self.feed_forward, names)


def _fitting(pattern: str, names: list[str]) -> list[str]:
    return [name for name in names if re.search(f"(?:{pattern})$", f".{name}")]


_BERT = Placement(
    attention=rf"{LAYER}attention\.output\.dense",
    feed_forward=rf"{LAYER}output\.dense",
    after=(rf"{LAYER}output\.LayerNorm", "around-norm"),
    beside=(rf"{LAYER}output", "beside-residual"),
    keys_and_values=rf"{LAYER}attention\.self\.(key|value)",
    self_attention=(rf"{LAYER}attention\.self", "interface"),
)
_DEBERTA = replace(_BERT, keys_and_values=None, self_attention=None)
_DEBERTA_V2 = replace(
    _BERT,
    keys_and_values=rf"{LAYER}attention\.self\.(key|value)_proj",
    self_attention=(rf"{LAYER}attention\.self", "disentangled"),
)
_DISTILBERT = Placement(
    attention=r"\.attention\.out_lin",
    feed_forward=r"\.ffn\.lin2",
    after=(r"\.output_layer_norm", "around-norm"),
    beside=(r"\.ffn", "beside"),
    keys_and_values=r"\.attention\.[kv]_lin",
    self_attention=(rf"{LAYER}attention", "interface"),
)
_MODERNBERT = Placement(
    attention=r"\.attn\.Wo",
    feed_forward=r"\.mlp\.Wo",
    after=(r"\.mlp\.Wo", "after"),
    beside=(r"\.mlp", "beside"),
    keys_and_values=None,
    self_attention=(r"\.attn", "interface"),
)
_T5 = Placement(
    attention=r"\.SelfAttention\.o",
    feed_forward=r"\.DenseReluDense\.wo",
    after=(r"\.DenseReluDense\.wo", "after"),
    beside=(r"\.DenseReluDense", "beside"),
    keys_and_values=r"Attention\.[kv]",
    self_attention=(r"\.SelfAttention", "interface"),
)
_BART = Placement(
    attention=r"\.self_attn\.out_proj",
    feed_forward=r"\.fc2",
    after=(r"\.final_layer_norm", "around-norm"),
    beside=None,  # its feed-forward network is no module of its own
    keys_and_values=r"_attn\.[kv]_proj",
    self_attention=(r"\.self_attn", "interface"),
)
_MBART = replace(_BART, after=(r"\.fc2", "after"))  # it normalizes first
_LLAMA = Placement(
    attention=r"\.self_attn\.o_proj",
    feed_forward=r"\.mlp\.down_proj",
    after=(r"\.mlp\.down_proj", "after"),
    beside=(r"\.mlp", "beside"),
    keys_and_values=r"\.self_attn\.[kv]_proj",
    self_attention=(r"\.self_attn", "interface"),
)
_GPT2 = Placement(
    attention=r"\.attn\.c_proj",
    feed_forward=r"\.mlp\.c_proj",
    after=(r"\.mlp\.c_proj", "after"),
    beside=(r"\.mlp", "beside"),
    keys_and_values=None,
    self_attention=(r"\.attn", "interface"),
)

PLACEMENTS: dict[str, Placement] = {
    **dict.fromkeys(["bert", "roberta", "xlm-roberta", "camembert", "electra"], _BERT),
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    "modernbert": _MODERNBERT,
    **dict.fromkeys(["t5", "mt5"], _T5),
    "bart": _BART,
    "mbart": _MBART,
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3"], _LLAMA),
    "gpt2": _GPT2,
}
