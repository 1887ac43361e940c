"""Tiny random models of many architectures, and a recipe for each kind of task that they are tuned for."""

from tests.architectures import _word_pieces
from tests.language_models import save_byte_tokenizer
from tests.methods.test_method_matrix import enlarge_weights
from tests.recipes import write_merged
from tests.task_stores import KINDS, to_json_lines

POSITIONS = 64
DROPPED = object()
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"max_position_embeddings": POSITIONS + 2}
GROUPED = {"num_key_value_heads": 1, "head_dim": 16}
D_MODEL = {"d_model": 32, "max_position_embeddings": 96, "scale_embedding": False}
PARTS = {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in
         {"layers": 1, "attention_heads": 2, "ffn_dim": 64}.items()}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS, "n_ctx": POSITIONS}

# architecture → its tokenizer, and what its configuration needs: pieces have [CLS] and [SEP], pairs of pieces have
# types too (left ones are padded on the left), marked bytes end in </s>, and bare bytes have no token for padding
ENCODERS = {
    "albert": ("types", {"embedding_size": 16}),
    "bert": ("types", {}),
    "big_bird": ("types", {"attention_type": "original_full"}),
    "camembert": ("pieces", {"type_vocab_size": 1}),
    "convbert": ("types", {"embedding_size": 16, "conv_kernel_size": 3, "head_ratio": 1}),
    "data2vec-text": ("pieces", {"type_vocab_size": 1}),
    "deberta": ("types", {"type_vocab_size": 2, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "deberta-v2": ("types", {"type_vocab_size": 2, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "distilbert": ("pieces", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
    "electra": ("types", {"embedding_size": 16}),
    "ernie": ("types", {}),
    "esm": ("pieces", {"mask_token_id": 4, "position_embedding_type": "rotary", "token_dropout": False}),
    "flaubert": ("pieces", {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "pad_index": 0, "use_lang_emb": False}),
    "fnet": ("types", {}),
    "funnel": ("types", {"architectures": ["FunnelModel"], "num_hidden_layers": DROPPED, "block_sizes": [1, 1],
                         "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64}),
    "ibert": ("pieces", {"type_vocab_size": 1}),
    "layoutlm": ("types", {}),
    "longformer": ("pieces", {"attention_window": [8, 8], "type_vocab_size": 1, "sep_token_id": 3}),
    "megatron-bert": ("types", {}),
    "mobilebert": ("types", {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}),
    "modernbert": ("pieces", {"local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 2}),
    "mpnet": ("pieces", {}),
    "mra": ("types", {}),
    "nystromformer": ("types", {"num_landmarks": 8, "segment_means_seq_len": 8, "conv_kernel_size": 3}),
    "rembert": ("types", {"input_embedding_size": 16, "output_embedding_size": 32}),
    "roberta": ("pieces", {"type_vocab_size": 1}),
    "roberta-prelayernorm": ("pieces", {"type_vocab_size": 1}),
    "roformer": ("types", {"embedding_size": 32}),
    "squeezebert": ("types", {"embedding_size": 32, **{f"{name}_groups": 1 for name in
                              ("q", "k", "v", "post_attention", "intermediate", "output")}}),
    "xlm": ("pieces", {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "pad_index": 0, "use_lang_emb": False}),
    "xlm-roberta": ("pieces", {"type_vocab_size": 1}),
    "xlnet": ("left", {"max_position_embeddings": DROPPED, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}),
    "xmod": ("pieces", {"type_vocab_size": 1, "default_language": "en_XX"}),
    "yoso": ("types", {}),
}  # fmt: skip
ENCODER_DECODERS = {
    "bart": ("marked", D_MODEL | PARTS),
    "mbart": ("marked", D_MODEL | PARTS),
    "mt5": ("marked", T5),
    "mvp": ("marked", D_MODEL | PARTS),
    "plbart": ("marked", D_MODEL | PARTS),
    "t5": ("marked", T5),
    "umt5": ("marked", T5),
}
DECODERS = {
    "bloom": ("bare", {"n_layer": 2, "n_head": 2}),
    "falcon": ("bare", {"num_kv_heads": 1, "multi_query": True, "new_decoder_architecture": False}),
    "gemma": ("bare", GROUPED),
    "gpt2": ("bare", GPT2),
    "gpt_neo": ("bare", {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}),
    "gpt_neox": ("bare", {}),
    "gptj": ("bare", {**GPT2, "rotary_dim": 8}),
    "llama": ("bare", GROUPED),
    "mistral": ("bare", GROUPED),
    "opt": ("bare", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "phi": ("bare", {}),
    "qwen2": ("bare", GROUPED),
    "qwen3": ("bare", GROUPED),
    "stablelm": ("bare", {"num_key_value_heads": 2}),
}
ARCHITECTURES = {**ENCODERS, **ENCODER_DECODERS, **DECODERS}
PAIRS = [
    ("the train was late .", "it rained .", "yes"),
    ("nobody came by train to paris .", "it was quiet .", "no"),
    ("rain .", "the letter from london was late , and nobody came .", "no"),
]
TASKS = {
    "classification": KINDS["classes"],
    "pairs": ({"type": "text-classification"},
              [dict(zip(("text", "text_pair", "label"), row, strict=True)) for row in PAIRS * 4]),
    "NER": KINDS["entities"],
    "QA": KINDS["answers"],
    "regression": ({"type": "regression"},
                   [{"text": row["text"], "label": row["label"]} for row in KINDS["rating"][1]]),
}  # fmt: skip


def build_architecture(name, folder):
    """Write a tiny random model of an architecture, without a head, and a tokenizer for it."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    tokenizer, changes = ARCHITECTURES[name]
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    if tokenizer in ("types", "left", "pieces"):
        types = [] if tokenizer == "pieces" else ["token_type_ids"]
        size = _word_pieces(folder, ["input_ids", *types, "attention_mask"])
    else:
        saved = save_byte_tokenizer(folder, begin=False, end=tokenizer == "marked")
        size, marked = len(saved), tokenizer == "marked"
        ids = saved.convert_tokens_to_ids
        special = {"pad_token_id": saved.pad_token_id if marked else None, "bos_token_id": ids("<s>")}
        special |= {"eos_token_id": ids("</s>")}
        special |= {"decoder_start_token_id": ids("</s>")} if marked else {}
    if tokenizer == "left":
        AutoTokenizer.from_pretrained(folder, padding_side="left").save_pretrained(folder)
    elif tokenizer != "types":
        end = "[SEP] [SEP]" if tokenizer == "pieces" else "</s>" if tokenizer == "marked" else ""
        _mark_pairs(folder, end)
    torch.manual_seed(0)
    values = {"vocab_size": size, **SIZES, **special, **changes}
    config = AutoConfig.for_model(name, **{key: value for key, value in values.items() if value is not DROPPED})
    AutoModel.from_config(config).save_pretrained(folder)
    return enlarge_weights(folder, 3)


def _mark_pairs(folder, between):
    """Let the tokenizer write these marks between the texts of a pair, and the first of its marks behind them."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    begin = "[CLS] " if between.startswith("[") else ""
    end = between.split(" ")[0]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A {end}".strip(),
        pair=" ".join(f"{begin}$A {between} $B {end}".split()),
        special_tokens=[(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in {begin.strip(), end} if mark],
    )
    tokenizer.save_pretrained(folder)


def sweep_recipe(folder, base, task, **changes):
    """Write the rows of a task of `TASKS` and a recipe for them into `folder`."""
    section, rows = TASKS[task]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text(to_json_lines(rows), encoding="utf8")
    values = {
        "name": task.lower(),
        "base": {"model": str(base)},
        "task": section,
        "method": {"r": 4},
        "data": {"train": "rows.jsonl", "validation": "rows.jsonl"},
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "bf16": False},
    }
    return write_merged(folder / "recipe.yaml", values, changes)
