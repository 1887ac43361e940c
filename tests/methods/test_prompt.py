"""Virtual tokens before the input: what heads and labels get, PEFT's own where that works, and its whole life cycle."""

import inspect
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import PeftModel, PeftType, PromptEncoderConfig, PromptTuningConfig, get_peft_model

import peftlab
from peftlab.errors import RecipeError
from peftlab.methods.prompt import p_tuning_config, prompt_config
from peftlab.methods.tuners.prompt import PromptConfig, PromptForward, PromptLayer
from peftlab.recipe import Prompt, PTuning
from peftlab.tasks import TASKS as RECORDS
from peftlab.tuning.frozen.layers import find_frozen_prefix
from tests.architectures import build
from tests.methods.test_prefix import INPUTS, MASK, base_of
from tests.runs import Losses, prepared_run
from tests.task_stores import KINDS as TASKS
from tests.task_stores import recipe_for

ENCODERS = ["bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert"]
DECODERS = ["llama", "qwen2", "gpt2"]
ENCODER_KINDS = ["none", "MLP", "LSTM"]
TAGGING = transformers.AutoModelForTokenClassification
CLASSIFYING = transformers.AutoModelForSequenceClassification
GENERATING = transformers.AutoModelForCausalLM


def config_for(model, **changes):
    words = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is words)
    fields = {"num_virtual_tokens": 3, "width": words.embedding_dim, "encoder_hidden_size": 6, "target_modules": [name]}
    return PromptConfig(**{**fields, **changes})


def make_peft_model(model, seed=1, **changes):
    torch.manual_seed(seed)
    return get_peft_model(model, config_for(model, **changes)).double().eval()


def layer_of(model):
    return next(module for module in model.modules() if isinstance(module, PromptLayer))


def inputs():
    return {"input_ids": INPUTS, "attention_mask": MASK}


def predict(model, **more):
    with torch.no_grad():
        output = model(**inputs(), **more)
    return output.logits if "logits" in output else output.last_hidden_state


@pytest.mark.parametrize("encoder", ENCODER_KINDS)
@pytest.mark.parametrize("kind", ENCODERS + DECODERS)
def test_token_logits_have_no_virtual_tokens(kind, encoder):
    model, plain = make_peft_model(base_of(kind, auto=TAGGING), encoder=encoder), base_of(kind, auto=TAGGING)
    with torch.no_grad():
        virtual = layer_of(model).virtual_tokens(["default"]).expand(2, -1, -1)
        words = plain.get_input_embeddings()(INPUTS)
        mask = torch.cat([torch.ones(2, 3, dtype=torch.long), MASK], 1)
        expected = plain(inputs_embeds=torch.cat([virtual, words], 1), attention_mask=mask).logits[:, 3:]
    torch.testing.assert_close(predict(model), expected, rtol=0, atol=1e-12)


def test_pooler_reads_first_real_token():
    model, plain = make_peft_model(base_of("bert", auto=CLASSIFYING)), base_of("bert", auto=CLASSIFYING)
    with torch.no_grad():
        words = plain.get_input_embeddings()(INPUTS)
        longer = torch.cat([layer_of(model).virtual_tokens(["default"]).expand(2, -1, -1), words], 1)
        mask = torch.cat([torch.ones(2, 3, dtype=torch.long), MASK], 1)
        states = plain.bert(inputs_embeds=longer, attention_mask=mask).last_hidden_state
        expected = plain.classifier(plain.bert.pooler(states[:, 3:]))
    torch.testing.assert_close(predict(model), expected, rtol=0, atol=1e-12)


def peft_prompt_model(model, adapter):
    """The same numbers in PEFT's own encoder, whose parameters come in the same order."""
    for theirs, mine in zip(model.prompt_encoder["default"].parameters(), adapter.parameters(), strict=True):
        theirs.data = mine.data.clone()
    return model.double().eval()


@pytest.mark.parametrize("encoder", ENCODER_KINDS)
@pytest.mark.parametrize("kind", DECODERS)
def test_prompt_matches_peft_in_language_models(kind, encoder):
    mine, base = make_peft_model(base_of(kind, auto=GENERATING), encoder=encoder), base_of(kind, auto=GENERATING)
    shape = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "token_dim": 16, "num_layers": 2}
    shape |= {"num_attention_heads": 2}
    config = PromptTuningConfig(**shape)
    if encoder != "none":
        config = PromptEncoderConfig(encoder_reparameterization_type=encoder, encoder_hidden_size=6, **shape)
    theirs = get_peft_model(base, config)
    parts = dict(layer_of(mine).input_prompt_encoder["default"].named_children())
    order = torch.nn.ModuleList([parts[name] for name in ("embedding", "recurrent", "layers") if parts.get(name)])
    theirs = peft_prompt_model(theirs, order)
    torch.testing.assert_close(predict(mine), predict(theirs)[:, 3:], rtol=0, atol=1e-9)


def test_initial_prompt_is_sampled_from_vocabulary():
    first, again, other = (make_peft_model(base_of("bert"), seed=seed) for seed in (1, 1, 2))
    made = [layer_of(model).virtual_tokens(["default"]) for model in (first, again, other)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    words = base_of("bert").get_input_embeddings().weight
    assert all((token == words).all(1).any() for token in made[0])


@pytest.mark.parametrize("kind", DECODERS)
def test_prompt_generation_with_cache_matches_without(kind):
    model = make_peft_model(base_of(kind, auto=GENERATING))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 99}
    rows = {"input_ids": INPUTS[:1, :4], "attention_mask": MASK[:1, :4]}
    with_cache, without = (model.generate(**rows, **options, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without)
    beams = [model.generate(**rows, **options, num_beams=3, use_cache=use) for use in (True, False)]
    assert torch.equal(*beams)


@pytest.mark.parametrize("encoder", ENCODER_KINDS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_add_set_disable_save_load_delete_unload(kind, encoder, tmp_path):
    model = make_peft_model(base_of(kind), encoder=encoder)
    one = predict(model)
    model.add_adapter("other", config_for(base_of(kind), num_virtual_tokens=4, encoder=encoder))
    assert torch.equal(predict(model.double()), one)
    model.set_adapter("other")
    two = predict(model.eval())
    with model.disable_adapter():
        assert torch.equal(predict(model), predict(base_of(kind)))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    for options in ({}, {"low_cpu_mem_usage": True}):
        again = PeftModel.from_pretrained(base_of(kind), tmp_path, autocast_adapter_dtype=False, **options)
        again.load_adapter(tmp_path / "other", "other", autocast_adapter_dtype=False, **options)
        torch.testing.assert_close(predict(again.eval()), one, rtol=0, atol=1e-12)  # an LSTM's last bits vary
        again.set_adapter("other")
        torch.testing.assert_close(predict(again.eval()), two, rtol=0, atol=1e-12)
        again.delete_adapter("default")
        torch.testing.assert_close(predict(again), two, rtol=0, atol=1e-12)
        assert again.peft_config["other"].peft_type == PeftType("INPUT_PROMPT")
    with pytest.raises(ValueError, match="virtual tokens are inputs, not weights"):
        model.merge_and_unload()
    unloaded = model.unload()
    assert torch.equal(predict(unloaded), predict(base_of(kind)))
    assert not [m for m in unloaded.modules() if isinstance(vars(m).get("forward"), PromptForward)]
    assert torch.equal(predict(make_peft_model(unloaded, encoder=encoder)), one)


@pytest.mark.parametrize("encoder", ENCODER_KINDS)
def test_reloaded_prompt_continues_training(encoder, tmp_path):
    model = make_peft_model(base_of("bert"), encoder=encoder)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base_of("bert"), tmp_path, is_trainable=True, autocast_adapter_dtype=False)
    for one in (model, again.eval()):
        optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1)
        one(**inputs()).last_hidden_state.square().mean().backward()
        optimizer.step()
    weights, others = (dict(m.named_parameters()) for m in (model, again))
    assert {name for name, p in others.items() if p.requires_grad} == {n for n, p in weights.items() if p.requires_grad}
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "modernbert", "llama"])
def test_gradient_checkpointing_yields_equal_gradients(kind):
    gradients = []
    for checkpointing in (False, True):
        model = make_peft_model(base_of(kind), encoder="MLP")
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(3)
        model.train()(**inputs(), use_cache=False).last_hidden_state.square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(a.abs().max() > 0 for a in gradients[0])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=1e-12)


def test_prompt_outputs_match_real_tokens():
    model, plain = make_peft_model(base_of("bert")), base_of("bert")
    states = model(**inputs(), output_hidden_states=True).hidden_states
    assert [tuple(one.shape) for one in states] == [(2, 9, 16)] * 3
    assert model(**inputs(), return_dict=False)[0].shape == (2, 9, 16)
    kinds, places = torch.ones_like(INPUTS), torch.arange(9).expand(2, -1) + 2
    found = model(**inputs(), token_type_ids=kinds, position_ids=places).last_hidden_state
    virtual, words = layer_of(model).virtual_tokens(["default"]).expand(2, -1, -1), plain.get_input_embeddings()(INPUTS)
    expected = plain(
        inputs_embeds=torch.cat([virtual, words], 1),
        attention_mask=torch.cat([torch.ones(2, 3), MASK], 1),
        token_type_ids=torch.cat([torch.zeros(2, 3, dtype=torch.long), kinds], 1),
        position_ids=torch.cat([torch.arange(3).expand(2, -1), places + 3], 1),
    ).last_hidden_state[:, 3:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    with_embeddings = model(inputs_embeds=words, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(with_embeddings, predict(model), rtol=0, atol=1e-12)


def test_unsupported_prompt_inputs_raise_value_error():
    model = make_peft_model(base_of("bert"))
    with pytest.raises(ValueError, match=r"a mask of shape \(batch, tokens\), not of 4 dimensions"):
        model(INPUTS, attention_mask=torch.ones(2, 1, 9, 9))
    with pytest.raises(ValueError, match="virtual tokens do not work with 'bbox', because they have no value for it"):
        model(INPUTS, bbox=torch.ones(2, 9, 4))


@pytest.fixture
def tiny(tmp_path_factory):
    return lambda kind: build(kind, tmp_path_factory.mktemp(kind))


class Notes(Losses):
    def __init__(self):
        super().__init__()
        self.notes = []

    def info(self, message):
        self.notes.append(message)


@pytest.mark.parametrize("kind", TASKS)
def test_prompt_is_tuned_and_served_for_each_task(tiny, tmp_path, kind):
    progress = Notes()
    recipe = recipe_for(tmp_path / "rows", tiny("bert"), kind, training={"learning_rate": 2e-2, "num_train_epochs": 6})
    method = {"method": {"type": "prompt", "num_virtual_tokens": 4}}
    result = peftlab.tune(recipe, overrides=method, store=tmp_path / "store", device="cpu", progress=progress)
    assert result.adapter.manifest.reload_difference < 1e-5
    assert result.adapter.manifest.max_length == 60
    assert progress.notes[0] == "4 of the 64 tokens of an input are virtual tokens: 60 are left."
    bank = peftlab.load(kind, store=tmp_path / "store", device="cpu")
    row = {"tokens": ["Ada", "left", "Rome", "."]} if kind in ("entities", "characters") else bank_row(bank.task(kind))
    alone, beside = bank.predict(row), bank.predict([row, row])
    assert [one.as_dict() for one in beside] == [alone[0].as_dict()] * 2


def bank_row(task):
    """Something for each column that the task asks for."""
    text = (
        "<e1>Ada Lovelace</e1> left <e2>Rome</e2> ." if "relation" in type(task).__name__.lower() else "Ada left Rome ."
    )
    return dict.fromkeys(RECORDS[task.type].input_columns(task), text)


def run_of(tiny, tmp_path, kind="bert", method=None, **changes):
    recipe = recipe_for(tmp_path / "rows", tiny(kind), "classes")
    return prepared_run(recipe, {"method": {"type": "prompt", **(method or {})}, **changes})


def test_virtual_tokens_reduce_max_length(tiny, tmp_path):
    run = run_of(tiny, tmp_path, method={"num_virtual_tokens": 20})
    assert run.dataset.max_length == 44
    ids = torch.randint(5, 20, (1, 44))
    assert run.model(input_ids=ids).logits.shape[0] == 1
    for length, found in ((40, 40), (44, 44)):
        run = run_of(tiny, tmp_path, method={"num_virtual_tokens": 20}, **{"data.max_length": length})
        assert run.dataset.max_length == found
    with pytest.raises(
        RecipeError, match=r"data.max_length: 45 tokens are more than this base takes \(64, of which 20 are"
    ):
        run_of(tiny, tmp_path, method={"num_virtual_tokens": 20}, **{"data.max_length": 45})
    with pytest.raises(RecipeError, match=r"num_virtual_tokens: 60 virtual tokens leave 4 of the 64 .* Use fewer"):
        run_of(tiny, tmp_path, method={"num_virtual_tokens": 60})


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("kind", ["prefix", "prompt", "p-tuning"])
def test_prompt_with_fast_steps_reduces_loss(tiny, tmp_path, kind, bf16):
    training = {"bf16": bf16, "num_train_epochs": 15, "learning_rate": 1e-2, "base_dropout": False}
    recipe, progress = recipe_for(tmp_path / "rows", tiny("modernbert"), "classes", training=training), Notes()
    method = {"method": {"type": kind, "num_virtual_tokens": 4}}
    peftlab.tune(recipe, overrides=method, store=tmp_path / "store", device="cpu", progress=progress)
    quarter = len(progress.losses) // 4
    assert sum(progress.losses[-quarter:]) < 0.9 * sum(progress.losses[:quarter])


def test_prompt_has_no_frozen_prefix(tiny, tmp_path):
    assert find_frozen_prefix(run_of(tiny, tmp_path)) is None


def test_prompt_in_unsupported_base_raises_recipe_error(monkeypatch):
    with pytest.raises(RecipeError, match="virtual tokens do not work with 't5', an encoder-decoder"):
        prompt_config(SimpleNamespace(model=base_of("t5")), Prompt(type="prompt"), None)
    blind = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)])
    monkeypatch.setattr(transformers.BertModel.forward, "__signature__", blind, raising=False)
    with pytest.raises(
        RecipeError, match="virtual tokens do not work with 'bert', which does not accept `inputs_embeds`"
    ):
        p_tuning_config(SimpleNamespace(model=base_of("bert")), PTuning(type="p-tuning"), None)
