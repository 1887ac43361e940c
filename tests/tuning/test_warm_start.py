"""`method.start_from`: a run starts with the exact weights of a published adapter, or raises a clear error."""

import json
import shutil

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

import peftlab
from peftlab.errors import RecipeError, TuningInterrupted
from peftlab.interop import merge
from peftlab.store import WEIGHTS_FILE, Store
from peftlab.tuning.evaluate import evaluate_split
from tests.conftest import recipe_in
from tests.language_models import build_language_model, instruction_recipe
from tests.masked_models import KINDS, build_masked_model, text_recipe
from tests.recipe.test_task_sections import Stopping
from tests.runs import Losses, prepared_run
from tests.task_stores import one_line, recipe_for, run
from tests.untrained import publish_changed, publish_untrained

METHODS = {
    "lora": {"type": "lora", "r": 4},
    "dora": {"type": "lora", "r": 4, "use_dora": True, "use_rslora": True, "lora_dropout": 0.1},
    "upper": {"type": "lora", "r": 2, "layers_to_transform": 1, "target_modules": ["query", "value"]},
    "pfeiffer": {"type": "bottleneck"},
    "houlsby": {"type": "bottleneck", "variant": "houlsby"},
    "parallel": {"type": "bottleneck", "variant": "parallel"},
    "ia3": {"type": "ia3"},
    "prefix": {"type": "prefix", "num_virtual_tokens": 3},
    "projected": {"type": "prefix", "num_virtual_tokens": 3, "prefix_projection": True},
    "prompt": {"type": "prompt", "num_virtual_tokens": 3},
    "p-tuning": {"type": "p-tuning", "num_virtual_tokens": 3},
    "bitfit": {"type": "bitfit"},
    "vera": {"type": "vera", "r": 4},
    "loha": {"type": "loha", "r": 4},
    "last-layers": {"type": "last-layers"},
    "full": {"type": "full"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_masked_model(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def store(base, tmp_path):
    """A LoRA domain adapter with random weights."""
    publish_untrained(tmp_path / "store", text_recipe(tmp_path / "rows", base), {})
    return tmp_path / "store"


def token_classifier_recipe(folder, base, **method):
    """A token-classification recipe that starts from `letters`."""
    folder.mkdir(exist_ok=True)
    return recipe_in(folder, base, method={"r": 4, "start_from": "letters", **method})


def plain_model(base, adapter):
    """The adapter loaded by plain PEFT on the class of its own task."""
    task = adapter.task
    labels = {"num_labels": len(task.head.labels)} if task.head.labels else {}
    model = getattr(transformers, task.head.auto_class).from_pretrained(base, dtype=torch.float32, **labels)
    return PeftModel.from_pretrained(model, adapter.folder).eval().get_base_model()


def states(model, **inputs):
    with torch.inference_mode():
        return model.eval().base_model(**inputs).last_hidden_state


def assert_starts_from(run_, base, adapter):
    tokens = torch.arange(5, 17).view(2, 6)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    first = states(run_.model.get_base_model(), **inputs)
    assert torch.equal(first, states(plain_model(base, adapter), **inputs))
    assert not torch.equal(first, states(transformers.AutoModel.from_pretrained(base), **inputs))


# --- weights


@pytest.mark.parametrize("method", METHODS)
def test_token_classifier_starts_from_domain_delta(base, tmp_path, method):
    section, store = METHODS[method], tmp_path / "store"
    adapter = publish_untrained(store, text_recipe(tmp_path / "rows", base), {"method": section})
    (tmp_path / "tags").mkdir()
    recipe = recipe_in(tmp_path / "tags", base)
    before = prepared_run(recipe, {"method": section})
    new_run = prepared_run(recipe, {"method": {**section, "start_from": "letters"}}, store=store)
    assert_starts_from(new_run, base, adapter)
    trained = [[name for name, p in r.model.named_parameters() if p.requires_grad] for r in (before, new_run)]
    assert trained[0] == trained[1]
    assert new_run.num_trainable == before.num_trainable
    assert (new_run.start.has_head, new_run.start.newly_initialized, new_run.start.skipped) == (False, [], [])


@pytest.mark.parametrize("kind", [*KINDS, "llama", "gpt2"])
def test_delta_loads_on_every_architecture(tmp_path, kind):
    writes = kind in ("llama", "gpt2")
    base = (build_language_model if writes else build_masked_model)(tmp_path / "base", kind)
    adapter = publish_untrained(tmp_path / "store", text_recipe(tmp_path / "rows", base), {})
    new_run = prepared_run(token_classifier_recipe(tmp_path / "tags", base), store=tmp_path / "store")
    assert_starts_from(new_run, base, adapter)
    assert new_run.start.num_tensors == len(load_file(adapter.folder / WEIGHTS_FILE))


def with_pooler(folder):
    """A base with a pooler in its checkpoint, like BERT's: a classifier has it, a masked language model does not."""
    build_masked_model(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    transformers.BertForPreTraining(config).save_pretrained(folder)
    return folder


def test_module_in_one_model_is_initialized_or_skipped(tmp_path):
    base, store = with_pooler(tmp_path / "base"), tmp_path / "store"
    adapter = publish_untrained(store, text_recipe(tmp_path / "rows", base, task={"objective": "masked-lm"}), {})
    recipe = recipe_for(tmp_path / "classes", base, "classes", method={"r": 4, "start_from": "letters"})
    new_run = prepared_run(recipe, store=store)
    assert (new_run.start.newly_initialized, new_run.start.skipped) == (["bert.pooler.dense"], [])
    assert str(new_run.start) == (
        f"Starts from letters@1 (domain-adaptation): {new_run.start.num_tensors} tensors, and not its head: it has "
        "none of its own. Newly initialized: bert.pooler.dense, which its model does not have."
    )
    assert_starts_from(new_run, base, adapter)
    publish_untrained(store, recipe, {"name": "classes", "method.start_from": None})
    back = prepared_run(tmp_path / "rows" / "recipe.yaml", {"method.start_from": "classes"}, store=store)
    assert (back.start.newly_initialized, back.start.skipped) == ([], ["bert.pooler.dense"])
    assert back.start.no_head_reason == "it is for text-classification"
    assert_starts_from(back, base, Store(store).resolve("classes"))


def test_head_loads_only_for_same_task_and_labels(base, tmp_path):
    store = tmp_path / "store"
    recipe = recipe_for(tmp_path / "classes", base, "classes")
    adapter = publish_untrained(store, recipe, {})
    new_run = prepared_run(recipe, {"method.start_from": "classes"}, store=store)
    assert new_run.start.has_head
    inputs = new_run.model_inputs(new_run.train_features[:4])
    with torch.inference_mode():
        first, second = (m.eval()(**inputs).logits for m in (new_run.model, plain_model(base, adapter)))
    assert torch.equal(first, second)
    other = {"method.start_from": "classes", "task.labels": ["good", "bad", "fair"]}
    apart = prepared_run(recipe, other, store=store)
    assert apart.start.no_head_reason == "it has other labels (bad, fair, good)"
    with torch.inference_mode():
        assert not torch.equal(apart.model.eval()(**inputs).logits, second)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_domain_resume_from_same_loss(tmp_path, kind):
    base = (build_language_model if kind == "llama" else build_masked_model)(tmp_path / "base", kind)
    recipe, store = text_recipe(tmp_path / "rows", base), tmp_path / "store"
    first = peftlab.tune(recipe, store=store, device="cpu")
    again = {"method.start_from": "letters"}
    assert evaluate_split(prepared_run(recipe, again, store=store), "test").values == first.scores["test"].values
    second = peftlab.tune(recipe, overrides=again, store=store, device="cpu")
    assert second.adapter.version == 2
    output = second.adapter.manifest.started_from
    assert (output.adapter, output.manifest_sha256) == ("letters@1", first.adapter.manifest.manifest_sha256)


def test_chat_starts_from_domain(tmp_path):
    base = build_language_model(tmp_path / "base")
    adapter = publish_untrained(tmp_path / "store", text_recipe(tmp_path / "rows", base), {})
    new_run = prepared_run(
        instruction_recipe(tmp_path / "chat", base), {"method.start_from": "letters"}, store=tmp_path / "store"
    )
    assert_starts_from(new_run, base, adapter)


def test_fp32_delta_starts_run_on_quantized_base(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    base = build_masked_model(tmp_path / "base", **sizes)
    adapter = publish_untrained(tmp_path / "store", text_recipe(tmp_path / "rows", base), {})
    recipe = token_classifier_recipe(tmp_path / "tags", base)
    new_run = prepared_run(recipe, {"base.quantization": "8bit"}, store=tmp_path / "store")
    assert new_run.start.num_tensors == len(load_file(adapter.folder / WEIGHTS_FILE))


# --- messages and manifest


def test_command_line_reports_and_records_start(store, base, tmp_path):
    recipe = token_classifier_recipe(tmp_path / "tags", base, start_from="../store/letters@1")
    checked = run("check", recipe, "--device", "cpu")
    assert checked.exit_code == 0, checked.output
    assert "Starts from letters@1 (domain-adaptation): 24 tensors, and not its head" in one_line(checked.output)
    tuned = run("tune", recipe, "--store", store, "--device", "cpu")
    assert tuned.exit_code == 0, tuned.output
    assert "Starts from letters@1" in one_line(tuned.output)
    adapter, digest = Store(store).resolve("ner-tiny"), Store(store).resolve("letters").manifest.manifest_sha256
    card = (adapter.folder / "README.md").read_text()
    assert f"It was started from the delta of `letters@1` (manifest {digest[:12]}…)." in card
    assert "start_from: ../../letters@1" in (adapter.folder / "recipe.yaml").read_text()
    assert "from letters@1, manifest" in one_line(run("adapters", "show", "ner-tiny", "--store", store).output)
    named = run("check", recipe, "-o", "method.start_from=letters", "--store", store, "--device", "cpu")
    assert "Starts from letters@1" in one_line(named.output)


def test_resume_requires_same_start_adapter(store, base, tmp_path):
    recipe = token_classifier_recipe(tmp_path / "tags", base)
    straight = peftlab.tune(recipe, store=store, device="cpu", overrides={"name": "straight"})
    with pytest.raises(TuningInterrupted):
        peftlab.tune(recipe, store=store, device="cpu", progress=Stopping(at=2))
    published = Store(store).resolve("letters")
    publish_changed(store, "letters", lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    with pytest.raises(RecipeError, match="the adapter that it starts from is not that of the interrupted run"):
        peftlab.tune(recipe, store=store, device="cpu", resume=True)
    Store(store).rollback(str(published))
    resumed = peftlab.tune(recipe, store=store, device="cpu", resume=True)
    one, other = (load_file(result.adapter.folder / WEIGHTS_FILE) for result in (straight, resumed))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# --- errors


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"start_from": "lettres"}, r"method.start_from: no adapter 'lettres' in .*Did you mean 'letters'\?"),
        ({"start_from": "letters@7"}, "no version '7' of 'letters'"),
        ({"start_from": "../store/nothing"}, "no adapter 'nothing' in .*store"),
        ({"type": "ia3"}, r"letters@1 is of method lora, and this recipe's is ia3\. Use its method"),
        ({"type": "head"}, "'head' has no delta that another adapter could initialize"),
        ({"type": "adalora"}, "'adalora' redistributes its ranks while it trains"),
        ({"r": 8}, r"method.r: it is 8 here, and 4 in letters@1, which this recipe starts from\. Use 4"),
        ({"r": 8, "use_dora": True, "lora_alpha": 9}, r"(?s)3 problems.*lora_alpha: .*\.r: .*use_dora: it is True"),
        ({"target_modules": ["query"]}, r"letters@1 adapts 10 modules \(dense, key, value\) that this recipe does not"),
        ({"layers_to_transform": 0}, "letters@1 adapts 6 modules .* that this recipe does not"),
    ],
)  # fmt: skip
def test_other_method_or_shape_raises_with_differences(store, base, tmp_path, method, message):
    recipe = token_classifier_recipe(tmp_path / "tags", base, **({} if "type" in method else method))
    changes = {"method": {"start_from": "letters", **method}} if "type" in method else {}
    with pytest.raises(RecipeError, match=message):
        peftlab.tune(recipe, overrides=changes, store=store, device="cpu")
    assert Store(store).names() == ["letters"]


def test_adapter_with_missing_modules_raises(base, tmp_path):
    rows = text_recipe(tmp_path / "rows", base, method={"target_modules": ["query"]})
    publish_untrained(tmp_path / "store", rows, {})
    with pytest.raises(
        RecipeError, match=r"this recipe adapts 10 modules \(dense, key, value\) that letters@1 does not"
    ):
        prepared_run(token_classifier_recipe(tmp_path / "tags", base), store=tmp_path / "store")


def test_other_base_and_rank_are_reported_together(store, tmp_path):
    other = build_masked_model(tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(RecipeError, match=r"(?s)2 problems.*was tuned on .* with weights .*method.r: it is 2 here"):
        prepared_run(token_classifier_recipe(tmp_path / "tags", other, r=2), store=store)


def test_invalid_start_adapter_is_reported_with_other_errors(store, base, tmp_path):
    folder = Store(store).resolve("letters").folder
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-1] + b"x")
    recipe = token_classifier_recipe(tmp_path / "tags", base)
    (tmp_path / "tags" / "test.txt").unlink()
    with pytest.raises(
        RecipeError, match=r"(?s)2 problems.*no such file.*letters@1 is not what was published.*changed"
    ):
        peftlab.tune(recipe, store=store, device="cpu")


def test_start_path_is_relative_to_recipe(store, base, tmp_path):
    from peftlab.recipe import read_recipe

    recipe = token_classifier_recipe(tmp_path / "tags", base, start_from="../store/letters")
    assert read_recipe(recipe).method.start_from == str(store / "letters")
    shutil.move(tmp_path / "tags", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "letters").mkdir()  # a name refers to the store, not to a folder beside the recipe
    named = read_recipe(tmp_path / "elsewhere" / "recipe.yaml", {"method.start_from": "letters"})
    assert named.method.start_from == "letters"
    output = Losses()
    peftlab.check(tmp_path / "elsewhere" / "recipe.yaml", device="cpu", progress=output)
    assert not [warning for warning in output.warnings if "validation has" not in warning]


# --- stacked instead of warm start


def test_domain_and_task_stack_matches_merged_model(store, base, tmp_path):
    """Oracle: the domain merged into the base's weights, and the classifier loaded on them by plain PEFT."""
    adapter = publish_untrained(store, recipe_for(tmp_path / "classes", base, "classes"), {}, seed=2)
    text, top, both = "the train was late .", "classes", "letters+classes"
    folder = merge("letters", tmp_path / "merged", store=store, device="cpu").folder
    inputs = transformers.AutoTokenizer.from_pretrained(base)(text, return_tensors="pt")
    with torch.inference_mode():
        expected = plain_model(folder, adapter)(**inputs).logits[0].softmax(-1).tolist()
    bank = peftlab.load(both, store=store, device="cpu")
    assert bank.names == ["letters", top, both]
    single_run, stacked = (bank.predict(text, adapters=name)[0].prediction for name in (top, both))
    assert list(stacked.probabilities.values()) == pytest.approx(expected, abs=1e-5)
    assert list(stacked.probabilities.values()) != pytest.approx(list(single_run.probabilities.values()), abs=1e-3)

    output = run("predict", both, text, "--store", store, "--json")
    assert output.exit_code == 0, output.output
    assert json.loads(output.stdout) == {"adapter": both, **stacked.as_dict()}
    assert both not in run("predict", both, text, "--store", store).output  # the only adapter of the request
    scored = run("evaluate", both, "--data", tmp_path / "classes" / "test.jsonl", "--store", store)
    assert "through letters@1+classes@1" in one_line(scored.output)


@pytest.mark.parametrize("name", ["letters+nobody", "nobody+letters", "letters+", "+letters"])
def test_stack_with_missing_adapter_is_reported(store, name):
    output = run("predict", name, "Ada", "--store", store)
    assert output.exit_code == 3
    assert "Available: letters" in one_line(output.output)
