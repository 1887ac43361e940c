"""ARCHITECTURES: the modules that methods adapt in each architecture, by Transformers' model type.

Names are regular expressions that match the end of a full module name.
"""

import re
from dataclasses import dataclass, replace

LAYER = r"\.layers?\.\d+\."
NO_MODULE = "(?!)"


@dataclass(frozen=True)
class Architecture:
    """Modules of one architecture; None if it has no such module.

    Args:
        attention: Ends of attention sub-layers, before the residual is added.
        feed_forward: Ends of feed-forward sub-layers, before the residual is added.
        pfeiffer: The module that gets the one bottleneck of a layer, and its form (a key of `tuners.bottleneck.FORMS`):
            in post-norm models the norm after the residual ("around-norm"), else the end of the feed-forward network.
        parallel: The complete feed-forward network as one module, and the form of a bottleneck parallel to it.
        keys_and_values: The key and value projections of the attention, if they are separate modules.
        self_attention: Modules that hold queries, keys and values, and the form of a prefix in them (a key of
            `tuners.prefix_attention.FORMS`).
    """

    attention: str
    feed_forward: str
    pfeiffer: tuple[str, str]
    parallel: tuple[str, str] | None
    keys_and_values: str | None
    self_attention: tuple[str, str] | None

    def bottleneck_targets(self, variant: str, names: list[str]) -> tuple[list[str], str]:
        """The modules among `names` that get a bottleneck, and its form; none if the variant is impossible."""
        pattern, form = {
            "houlsby": (f"{self.attention}|{self.feed_forward}", "after"),
            "pfeiffer": self.pfeiffer,
            "parallel": self.parallel or (NO_MODULE, ""),
        }[variant]
        return _matching(pattern, names), form

    def prefix_targets(self, names: list[str]) -> tuple[list[str], str]:
        """The self-attention modules among `names`, and the form of a prefix in them; none if it is impossible."""
        pattern, form = self.self_attention or (NO_MODULE, "")
        return _matching(pattern, names), form

    def ia3_targets(self, names: list[str]) -> tuple[list[str], list[str]]:
        """The modules whose outputs (IA)³ scales (keys, values), and those whose inputs it scales (feed-forward)."""
        return _matching(self.keys_and_values or NO_MODULE, names), _matching(self.feed_forward, names)


def _matching(pattern: str, names: list[str]) -> list[str]:
    return [name for name in names if re.search(f"(?:{pattern})$", f".{name}")]


_BERT = Architecture(
    attention=rf"{LAYER}attention\.output\.dense",
    feed_forward=rf"{LAYER}output\.dense",
    pfeiffer=(rf"{LAYER}output\.LayerNorm", "around-norm"),
    parallel=(rf"{LAYER}output", "beside-residual"),
    keys_and_values=rf"{LAYER}attention\.self\.(key|value)",
    self_attention=(rf"{LAYER}attention\.self", "interface"),
)
_DEBERTA = replace(_BERT, keys_and_values=None, self_attention=None)
_DEBERTA_V2 = replace(
    _BERT,
    keys_and_values=rf"{LAYER}attention\.self\.(key|value)_proj",
    self_attention=(rf"{LAYER}attention\.self", "disentangled"),
)
_DISTILBERT = Architecture(
    attention=r"\.attention\.out_lin",
    feed_forward=r"\.ffn\.lin2",
    pfeiffer=(r"\.output_layer_norm", "around-norm"),
    parallel=(r"\.ffn", "beside"),
    keys_and_values=r"\.attention\.[kv]_lin",
    self_attention=(rf"{LAYER}attention", "interface"),
)
_MODERNBERT = Architecture(
    attention=r"\.attn\.Wo",
    feed_forward=r"\.mlp\.Wo",
    pfeiffer=(r"\.mlp\.Wo", "after"),
    parallel=(r"\.mlp", "beside"),
    keys_and_values=None,
    self_attention=(r"\.attn", "interface"),
)
_T5 = Architecture(
    attention=r"\.SelfAttention\.o",
    feed_forward=r"\.DenseReluDense\.wo",
    pfeiffer=(r"\.DenseReluDense\.wo", "after"),
    parallel=(r"\.DenseReluDense", "beside"),
    keys_and_values=r"Attention\.[kv]",
    self_attention=(r"\.SelfAttention", "interface"),
)
_BART = Architecture(
    attention=r"\.self_attn\.out_proj",
    feed_forward=r"\.fc2",
    pfeiffer=(r"\.final_layer_norm", "around-norm"),
    parallel=None,  # its feed-forward network is not one module
    keys_and_values=r"_attn\.[kv]_proj",
    self_attention=(r"\.self_attn", "interface"),
)
_MBART = replace(_BART, pfeiffer=(r"\.fc2", "after"))  # pre-norm
_LLAMA = Architecture(
    attention=r"\.self_attn\.o_proj",
    feed_forward=r"\.mlp\.down_proj",
    pfeiffer=(r"\.mlp\.down_proj", "after"),
    parallel=(r"\.mlp", "beside"),
    keys_and_values=r"\.self_attn\.[kv]_proj",
    self_attention=(r"\.self_attn", "interface"),
)
_GPT2 = Architecture(
    attention=r"\.attn\.c_proj",
    feed_forward=r"\.mlp\.c_proj",
    pfeiffer=(r"\.mlp\.c_proj", "after"),
    parallel=(r"\.mlp", "beside"),
    keys_and_values=None,
    self_attention=(r"\.attn", "interface"),
)

ARCHITECTURES: dict[str, Architecture] = {
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
