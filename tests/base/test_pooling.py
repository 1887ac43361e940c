"""Heads that pool: the oracle is Transformers' plain backbone, pooled by numpy."""

import functools
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertForMaskedLM

from peftlab.base import BaseFiles, init_empty_model, load_base
from peftlab.base.pooled_model import pool
from peftlab.base.pooling import declared_pooling
from peftlab.data import Row
from peftlab.errors import IntegrityError, RecipeError
from peftlab.recipe import BaseSection
from peftlab.tasks.prediction import compute_outputs
from peftlab.tasks.regression import RegressionTask
from peftlab.tasks.relation_extraction import RelationExtractionTask
from peftlab.tasks.text_classification import TextClassificationTask
from peftlab.tasks.token_classification import TokenClassificationTask
from peftlab.tuning.head_inputs import head_inputs
from tests.architectures import build
from tests.sequence_models import build_sequence_model
from tests.task_stores import one_line, recipe_for, run

TEXTS = ["it rained .", "the train from London was late , it rained .", "nobody came"]
MARKED = [
    "<e1>Ada Lovelace</e1>   left <e2>London</e2> .",
    "in <e2:LOC>Rome</e2> it rained , wrote <e1:PER>Grace Hopper</e1> .",
    "<e1>a</e1> <e2>b</e2>",
]
BASES = ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "electra", "llama", "gpt2"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return functools.cache(lambda name: build(name, tmp_path_factory.mktemp(name)))


@pytest.fixture
def declaring(tiny_base, tmp_path):
    """A function that copies the tiny base with what Sentence Transformers says about its pooling."""

    def declare(config, folder="1_Pooling"):
        copied = shutil.copytree(tiny_base, tmp_path / "declaring", dirs_exist_ok=True)
        (copied / folder).mkdir(exist_ok=True)
        text = config if isinstance(config, str) else json.dumps(config)
        (copied / folder / "config.json").write_text(text, encoding="utf8")
        return copied

    return declare


def load(folder, task, pooling="auto", **section):
    return load_base(BaseSection(model=str(folder), pooling=pooling, **section), task, seed=1, device="cpu")


def features_of(task, base, texts):
    rows = [task.read_input(Row({"text": text}, "")) for text in texts]
    return [feature for windows in task.encode(rows, base.inputs, 64, training=True) for feature in windows]


def pooled_by_numpy(states, mask, pooling, positions=None):
    """One row at a time, on its real tokens only."""
    if pooling == "entity-start":
        return np.stack([row[place].reshape(-1) for row, place in zip(states, positions, strict=True)])
    rows = [row[real.astype(bool)] for row, real in zip(states, mask, strict=True)]
    by_name = {"mean": lambda row: row.mean(0), "max": lambda row: row.max(0), "last": lambda row: row[-1]}
    return np.stack([by_name[pooling](row) for row in rows])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", BASES)
@pytest.mark.parametrize("pooling", ["mean", "max", "last", "entity-start"])
def test_pooled_logits_match_plain_backbone_and_numpy(folder_of, architecture, pooling, side):
    labels = ["a", "b", "c"]
    marked = pooling == "entity-start"
    task = RelationExtractionTask(labels=labels) if marked else TextClassificationTask(labels=labels)
    base = load(folder_of(architecture), task, "auto" if marked else pooling)
    assert task.head.pooling == pooling
    base.inputs.tokenizer.padding_side = side
    batch = task.head.collate(features_of(task, base, MARKED if marked else TEXTS), base.inputs)
    positions = batch.pop("entity_positions").numpy() if marked else None
    if marked:
        starts = np.take_along_axis(batch["input_ids"].numpy(), positions, 1)
        assert ["@" in base.inputs.tokenizer.decode([token]) for token in starts[:, 0]] == [True] * 3
        assert ["#" in base.inputs.tokenizer.decode([token]) for token in starts[:, 1]] == [True] * 3
    plain = AutoModel.from_pretrained(folder_of(architecture)).eval()
    with torch.no_grad():
        states = plain(**batch).last_hidden_state.numpy()
    layer = base.model.get_submodule(base.output_layer)
    pooled = pooled_by_numpy(states, batch["attention_mask"].numpy(), pooling, positions)
    expected = pooled @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    found = compute_outputs(task, base.model, base.inputs, features_of(task, base, MARKED if marked else TEXTS))
    np.testing.assert_allclose(torch.stack(found), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
def test_pooling_without_mask_takes_every_token(pooling):
    states = torch.randn(3, 5, 4)
    assert torch.equal(pool(states, None, pooling), pool(states, torch.ones(3, 5), pooling))


def test_entity_start_head_says_what_is_missing(tiny_base):
    model = load(tiny_base, RelationExtractionTask(labels=["a", "b"])).model
    with pytest.raises(ValueError, match=r"reads the states at entity_positions, \(batch, 2\), which are missing"):
        model(input_ids=torch.ones((1, 4), dtype=torch.long))


MEAN = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (MEAN, "mean"),
        ({"pooling_mode": "mean", "embedding_dimension": 32}, "mean"),
        ({"pooling_mode": ["cls", "max"]}, "max"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True, "include_prompt": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_weightedmean_tokens": True}, "mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True}, None),
        ({}, None),
    ],
)
def test_auto_takes_the_pooling_that_the_base_declares(declaring, config, pooling):
    folder, task = declaring(config), TextClassificationTask(labels=["a", "b"])
    base = load(folder, task)
    assert task.head.pooling == pooling
    own = "the architecture's own head"
    assert base.pooling == (f"{pooling} pooling, declared by the base" if pooling else own)
    assert base.head_modules == (["pooled_classifier"] if pooling else ["classifier"])


def test_recipe_overrules_the_declaration(declaring):
    task = RegressionTask()
    assert load(declaring(MEAN), task, "max").pooling == "max pooling, as the recipe says"
    assert load(declaring(MEAN), task, "cls").pooling == "the architecture's own head"
    assert task.head.pooling is None


def test_relations_take_entity_starts_whatever_the_base_declares(declaring):
    task = RelationExtractionTask(labels=["a", "b"])
    base = load(declaring(MEAN), task)
    assert base.pooling == "entity-start pooling, the default of relation-extraction"
    assert base.model.get_submodule(base.output_layer).in_features == 64
    for pooling in ("mean", "max", "last", "cls"):
        load(declaring(MEAN), task, pooling)
        assert task.head.pooling == (None if pooling == "cls" else pooling)


def test_damaged_declaration_is_refused(declaring):
    with pytest.raises(IntegrityError, match=r"1_Pooling/config.json is not a JSON object: .*set base.pooling"):
        load(declaring("{"), TextClassificationTask(labels=["a", "b"]))


def test_declaration_is_downloaded_if_the_cache_lacks_it(tiny_base, declaring, monkeypatch):
    asked = []

    def snapshot(name, revision, patterns, *, local_files_only):
        asked.append((name, revision, patterns, local_files_only))
        return declaring(MEAN)

    monkeypatch.setattr("peftlab.base.pooling.find_hub_snapshot", snapshot)
    assert declared_pooling(BaseFiles("a/b", tiny_base, "Hub cache", "c0ffee")) == "mean"
    assert declared_pooling(BaseFiles("a/b", tiny_base, "local folder")) is None
    assert asked == [("a/b", "c0ffee", ["*_Pooling/config.json"], True)]


def test_tokens_have_no_pooling(tiny_base, tmp_path):
    task = TokenClassificationTask(labels=["PER"])
    assert load(tiny_base, task).pooling == ""
    with pytest.raises(RecipeError, match=r"base.pooling: token-classification has no pooled output"):
        load(tiny_base, task, "mean")
    recipe = recipe_for(tmp_path, tiny_base, "entities")
    recipe.write_text(recipe.read_text(encoding="utf8").replace("base:\n", "base:\n  pooling: cls\n"), encoding="utf8")
    result = run("tune", recipe, "--store", tmp_path / "store")
    assert result.exit_code == 2
    expected = "recipe.yaml:3 base.pooling token-classification has no pooled output: it predicts for single tokens"
    assert expected in one_line(result.output)


def test_encoder_decoder_keeps_its_own_head(tmp_path):
    folder = build_sequence_model(tmp_path / "bart", "bart")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(MEAN), encoding="utf8")
    task = TextClassificationTask(labels=["a", "b"])
    reason = "the base is an encoder-decoder, whose own head reads the decoder"
    assert load(folder, task).pooling == f"the architecture's own head, because {reason}"
    assert task.head.pooling is None
    with pytest.raises(RecipeError, match=f"base.pooling: {reason}"):
        load(folder, task, "mean")


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooled_states_are_the_embeddings_of_sentence_transformers(tiny_base, tmp_path, pooling):
    modules = pytest.importorskip("sentence_transformers.models")
    from sentence_transformers import SentenceTransformer

    parts = [modules.Transformer(str(tiny_base)), modules.Pooling(32, pooling_mode=pooling)]
    model = SentenceTransformer(modules=parts, device="cpu")
    model.save(str(tmp_path / "saved"))
    task = TextClassificationTask(labels=["a", "b"])
    base = load(tmp_path / "saved", task)
    assert base.pooling == f"{pooling} pooling, declared by the base"
    found = head_inputs(base.model, base, task, features_of(task, base, TEXTS))
    np.testing.assert_allclose(torch.stack(found), model.encode(TEXTS), rtol=0, atol=1e-5)


def test_backbone_is_loaded_from_a_checkpoint_with_prefix(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "prefixed")
    BertForMaskedLM.from_pretrained(tiny_base).save_pretrained(tmp_path / "prefixed")
    task = TextClassificationTask(labels=["a", "b"])
    plain, prefixed = (load(folder, task, "mean") for folder in (tiny_base, tmp_path / "prefixed"))
    assert plain.model.state_dict().keys() == prefixed.model.state_dict().keys()
    assert all(
        torch.equal(tensor, prefixed.model.state_dict()[name]) for name, tensor in plain.model.state_dict().items()
    )
    assert not any("pooler" in name for name in plain.model.state_dict())
    assert plain.num_parameters == sum(p.numel() for p in plain.model.bert.parameters())
    empty = init_empty_model(plain.files, task)
    assert type(empty) is type(plain.model)
    assert {name: t.shape for name, t in empty.state_dict().items()} == {
        name: t.shape for name, t in plain.model.state_dict().items()
    }


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_pooled_head_is_not_quantized(tiny_base, quantization):
    task = TextClassificationTask(labels=["a", "b"])
    base = load(tiny_base, task, "mean", quantization=quantization)
    assert base.model.pooled_classifier.weight.dtype == torch.float32
    assert base.model.bert.encoder.layer[0].attention.self.query.weight.dtype != torch.float32
    exact = load(tiny_base, task, "mean")
    features = features_of(task, base, TEXTS)
    found, expected = (torch.stack(head_inputs(one.model, one, task, features)) for one in (base, exact))
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.95


def test_dropout_is_that_of_the_configuration(tiny_base):
    task = TextClassificationTask(labels=["a", "b"])
    assert load(tiny_base, task, "mean").model.dropout.p == 0.1
    section = BaseSection(model=str(tiny_base), pooling="mean")
    assert load_base(section, task, seed=1, device="cpu", dropout=False).model.dropout.p == 0


OUTPUT_LAYERS = {
    "bert": ("classifier", "classifier"),
    "roberta": ("classifier.out_proj", "classifier"),
    "distilbert": ("classifier", "classifier"),
    "deberta-v2": ("classifier", "classifier"),
    "modernbert": ("classifier", "classifier"),
    "electra": ("classifier.out_proj", "classifier"),
    "llama": ("score", "score"),
    "gpt2": ("score", "classifier"),
}


@pytest.mark.parametrize("architecture", OUTPUT_LAYERS)
@pytest.mark.parametrize("kind", ["own", "mean", "relation", "tokens"])
def test_logits_are_the_output_layer_of_head_inputs(folder_of, architecture, kind):
    """What a probe is fitted to is what the head sees, for every head that is new."""
    tasks = {"relation": RelationExtractionTask, "tokens": TokenClassificationTask}
    task = tasks.get(kind, TextClassificationTask)(labels=["a", "b", "c"])
    base = load(folder_of(architecture), task, {"own": "cls", "mean": "mean"}.get(kind, "auto"))
    if kind == "tokens":
        rows = [task.read_input(Row({"text": text}, "")) for text in TEXTS]
        features = [one for row in rows for one in task.encode([row], base.inputs, 64, training=False)[0]]
    else:
        features = features_of(task, base, MARKED if kind == "relation" else TEXTS)
    own, tokens = OUTPUT_LAYERS[architecture]
    assert base.output_layer == {"own": own, "tokens": tokens}.get(kind, "pooled_classifier")
    layer, states = base.model.get_submodule(base.output_layer), head_inputs(base.model, base, task, features)
    logits = compute_outputs(task, base.model, base.inputs, features)
    assert [len(one.shape) for one in states] == [2 if kind == "tokens" else 1] * len(TEXTS)
    for one, expected in zip(states, logits, strict=True):
        torch.testing.assert_close(layer(one), expected, rtol=0, atol=1e-5)
