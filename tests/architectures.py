"""Tiny random models of five architectures, saved as the Hub would hold them, with the tokenizers they come with."""

import json

from tests.conftest import SENTENCES

POSITIONS = 64
TEXTS = [
    *SENTENCES.values(),
    "我爱北京和上海，也爱东京大学。小猫在哪里？",
    "زارت آدا لوفلايس القاهرة، ثم بغداد. أين؟",
    "עדה כתבה מכתב אל לונדון. איפה?",
    "👩‍🚀 👋🏽 🇫🇷🇩🇪 ❤️ @ * # ^ … ? ! ( ) ;",
    "Who wrote the letter that reached Paris late ? A film that I liked , dull and long .",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def _save_tokenizer(core, folder, inputs):
    from transformers import PreTrainedTokenizerFast

    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=POSITIONS, model_input_names=inputs, **names
    ).save_pretrained(folder)
    return core.get_vocab_size()


def _template(core):
    from tokenizers import processors

    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )


def _word_pieces(folder, inputs=("input_ids", "token_type_ids", "attention_mask")):
    """BERT's and DistilBERT's: lower case, words of known letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(lowercase=True)
    letters = sorted({letter for text in TEXTS for letter in normalizer.normalize_str(text) if not letter.isspace()})
    words = sorted({word for text in TEXTS for word in normalizer.normalize_str(text).split() if word.isalpha()})
    pieces = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words])
    core = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _template(core)
    return _save_tokenizer(core, folder, list(inputs))


def _bytes(folder):
    """ModernBERT's: byte-level, and nothing takes the blank before a word out of its offsets."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(SENTENCES.values(), trainer)
    _template(core)
    return _save_tokenizer(core, folder, ["input_ids", "attention_mask"])


def _roberta_bytes(folder):
    """RoBERTa's: byte-level, with a post-processor that trims offsets."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(SENTENCES.values(), vocab_size=400, special_tokens=special, show_progress=False)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    RobertaTokenizerFast(vocab=model["vocab"], merges=merges, model_max_length=POSITIONS).save_pretrained(folder)
    return trained.get_vocab_size()


def _unigrams(folder):
    """DeBERTa-v2's: SentencePiece, where a piece holds the blank before it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import DebertaV2Tokenizer

    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    )
    vocabulary = [(piece, score) for piece, score in json.loads(core.to_str())["model"]["vocab"]]
    DebertaV2Tokenizer(vocab=vocabulary, model_max_length=POSITIONS).save_pretrained(folder)
    return len(vocabulary)


def _bert(folder, **options):
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=_word_pieces(folder), max_position_embeddings=POSITIONS, **SIZES)
    return BertModel(config, **options)


def _roberta(folder):
    from transformers import RobertaConfig, RobertaModel

    size = _roberta_bytes(folder)
    config = RobertaConfig(vocab_size=size, max_position_embeddings=POSITIONS + 2, type_vocab_size=1, **SIZES)
    return RobertaModel(config, add_pooling_layer=False)


def _distilbert(folder):
    from transformers import DistilBertConfig, DistilBertModel

    size = _word_pieces(folder, ("input_ids", "attention_mask"))
    return DistilBertModel(
        DistilBertConfig(
            vocab_size=size, max_position_embeddings=POSITIONS, dim=32, n_layers=2, n_heads=2, hidden_dim=64
        )
    )


def _deberta(folder):
    from transformers import DebertaV2Config, DebertaV2Model

    config = DebertaV2Config(
        vocab_size=_unigrams(folder),
        max_position_embeddings=POSITIONS,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        pad_token_id=0,
        **SIZES,
    )
    return DebertaV2Model(config)


def _modernbert(folder):
    from transformers import ModernBertConfig, ModernBertModel

    special = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    size = _bytes(folder)
    config = ModernBertConfig(
        vocab_size=size, max_position_embeddings=POSITIONS, local_attention=16, global_attn_every_n_layers=2,
        **special, **SIZES,
    )  # fmt: skip
    return ModernBertModel(config)


def _llama(folder):
    from transformers import LlamaConfig, LlamaModel

    size = _word_pieces(folder, ("input_ids", "attention_mask"))
    return LlamaModel(LlamaConfig(vocab_size=size, max_position_embeddings=POSITIONS, pad_token_id=0, **SIZES))


def _qwen2(folder):
    from transformers import Qwen2Config, Qwen2Model

    size = _word_pieces(folder, ("input_ids", "attention_mask"))
    config = Qwen2Config(
        vocab_size=size, max_position_embeddings=POSITIONS, pad_token_id=0, num_key_value_heads=1, **SIZES
    )
    return Qwen2Model(config)


def _gpt2(folder):
    from transformers import GPT2Config, GPT2Model

    size = _word_pieces(folder, ("input_ids", "attention_mask"))
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return GPT2Model(GPT2Config(vocab_size=size, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=2, **special))


def _electra(folder):
    from transformers import ElectraConfig, ElectraModel

    size = _word_pieces(folder)
    return ElectraModel(ElectraConfig(vocab_size=size, max_position_embeddings=POSITIONS, embedding_size=16, **SIZES))


MORE = {"electra": _electra, "llama": _llama, "qwen2": _qwen2, "gpt2": _gpt2}
ARCHITECTURES = {
    "bert": _bert,
    "bert-without-pooler": lambda folder: _bert(folder, add_pooling_layer=False),
    "roberta": _roberta,
    "distilbert": _distilbert,
    "deberta-v2": _deberta,
    "modernbert": _modernbert,
}


def build(name, folder):
    """Write config.json, model.safetensors and the tokenizer of a tiny base into `folder`."""
    import torch

    torch.manual_seed(0)
    {**ARCHITECTURES, **MORE}[name](folder).save_pretrained(folder)
    return folder
