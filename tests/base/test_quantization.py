"""A base in 8 or 4 bits, held against plain Transformers, bitsandbytes and PEFT; and all that is refused in words."""

import json
import shutil

import pytest
import torch
import transformers
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertModel, BitsAndBytesConfig, LlamaConfig, LlamaModel, MPNetConfig, MPNetModel

import peftlab
from peftlab.base import BaseFiles, load_backbone, load_base
from peftlab.base.quantization import check_device
from peftlab.data import Row
from peftlab.errors import DeviceNotFoundError, ErrorCollector, IntegrityError, RecipeError
from peftlab.recipe import BaseSection, TrainingSection
from peftlab.store import Store
from peftlab.tasks import TASKS
from peftlab.tasks.prediction import forward
from peftlab.tuning import tune
from peftlab.tuning.fast import fast_steps
from peftlab.tuning.memory import check_optimizer
from tests.architectures import build
from tests.runs import Losses, prepared_run
from tests.task_stores import one_line, recipe_for, run

LAYERS = {"8bit": Linear8bitLt, "4bit": Linear4bit}
PLAINLY = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
BASES = ["bert", "bert-without-pooler", "roberta", "electra", "distilbert", "deberta-v2", "modernbert", "llama", "gpt2"]
HEADS = {
    "token-classification": {"labels": ["PER"]},
    "text-classification": {"labels": ["good", "bad"]},
    "question-answering": {},
}
TEXTS = ["the train was late , it rained .", "nobody came ."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder of each architecture."""
    built = {}

    def folder(name):
        if name not in built:
            built[name] = build(name, tmp_path_factory.mktemp(name))
        return built[name]

    return folder


@pytest.fixture(scope="module")
def store(tiny_base, tmp_path_factory):
    """Adapters of two methods on one base in 8bit, in 4bit and in fp32. Read only."""
    shelf = tmp_path_factory.mktemp("quantized")
    for quantization in ("8bit", "4bit", None):
        for method in ({"type": "lora", "r": 4}, {"type": "bottleneck", "reduction_factor": 4}):
            name = f"{method['type']}-{quantization or 'fp32'}"
            changes = {"name": name, "method": method, "base.quantization": quantization}
            training = {"learning_rate": 2e-2, "num_train_epochs": 2}
            recipe = recipe_for(shelf / "classes", tiny_base, "classes", training=training)
            tune(recipe, overrides=changes, store=shelf / "store", device="cpu")
    return shelf / "store"


def plain_base(auto_class, folder, quantization, heads, **options):
    """What a user of Transformers and bitsandbytes writes, but for the packing on some CPUs."""
    config = BitsAndBytesConfig(**PLAINLY[quantization], llm_int8_skip_modules=heads)
    model = getattr(transformers, auto_class).from_pretrained(folder, quantization_config=config, **options)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


# what is quantized


@pytest.mark.parametrize("quantization", LAYERS)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", BASES)
def test_base_linear_layers_are_quantized_and_head_is_not(folder, name, kind, quantization):
    task = TASKS[kind].build(**HEADS[kind])
    section = BaseSection(model=str(folder(name)), quantization=quantization)
    base, whole = (
        load_base(section, task, seed=1, device="cpu"),
        load_base(section.model_copy(update={"quantization": None}), task, seed=1, device="cpu"),
    )
    assert (base.head_modules, base.num_parameters) == (whole.head_modules, whole.num_parameters)
    for name, module in base.model.named_modules():
        inside = any(f"{name}.".startswith(f"{head}.") for head in base.head_modules)
        if isinstance(module, torch.nn.Linear):
            assert type(module) is (torch.nn.Linear if inside else LAYERS[quantization]), name
        assert not isinstance(module, transformers.pytorch_utils.Conv1D)
    others = [p for p in base.model.parameters() if p.dtype not in (torch.int8, torch.uint8)]
    assert {p.dtype for p in others} == {torch.float32}
    assert whole.num_bytes >= whole.num_bytes_fp32 == base.num_bytes_fp32 > base.num_bytes


def test_unpackable_sizes_are_quantized(tmp_path):
    config = BertConfig(vocab_size=9, hidden_size=28, num_attention_heads=2, num_hidden_layers=1, intermediate_size=37)
    BertModel(config).save_pretrained(tmp_path)
    files = BaseFiles("odd", tmp_path, "local folder")
    model = load_backbone(files, quantization="4bit", device="cpu")
    whole = load_backbone(files, quantization="4bit", device="cpu").dequantize(torch.float32)
    tokens = torch.arange(8)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens)[0], whole(tokens)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("quantization", LAYERS)
def test_unsupported_quantization_device_is_refused(quantization):
    with pytest.raises(DeviceNotFoundError, match=f"{quantization} runs on cuda or cpu, not on mps. Use --device cpu"):
        check_device(quantization, torch.device("mps"))


# 4 bits on CPUs with AVX512-BF16

WIDE = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def adapted(folder, kind):
    """LoRA on a base in 4 bits, of sizes that can be packed."""
    torch.manual_seed(0)
    whole = BertModel(BertConfig(**WIDE, **NO_DROPOUT)) if kind == "bert" else LlamaModel(LlamaConfig(**WIDE))
    whole.save_pretrained(folder)
    base = load_backbone(BaseFiles(kind, folder, "local folder"), quantization="4bit", device="cpu")
    return get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))


def gradient(model):
    """Of all that LoRA trains, as one long row."""
    model.train().zero_grad()
    output = model(torch.arange(20)[None])[0]
    (output * torch.linspace(-1, 1, output.numel()).view_as(output).sin()).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def cosine_after_predicting(model):
    before = gradient(model)
    with torch.no_grad():
        model.eval()(torch.arange(20)[None])
    return float(torch.cosine_similarity(before, gradient(model), dim=0))


def find_4bit_layers(model):
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradients_are_unchanged_after_prediction(tmp_path, kind):
    model = adapted(tmp_path, kind)
    assert find_4bit_layers(model)
    assert not any(layer.support_avx512bf16_for_cpu for layer in find_4bit_layers(model))  # where the CPU lacks it, too
    assert cosine_after_predicting(model) >= 0.999


@pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no AVX512-BF16, so bitsandbytes packs nothing")
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradients_change_after_prediction_with_packing(tmp_path, kind):
    """If this fails, bitsandbytes has mended it, and `disable_avx512_packing` can go."""
    model = adapted(tmp_path, kind)
    for layer in find_4bit_layers(model):
        layer.support_avx512bf16_for_cpu = True
    if kind == "bert":  # it has biases
        with pytest.raises(RuntimeError, match="a view of a leaf Variable that requires grad is being used in an in-"):
            cosine_after_predicting(model)
    else:
        assert cosine_after_predicting(model) < 0.99


# what is refused in the recipe

REFUSED = {
    "base.quantization=8bit method.use_dora=true": "recipe.yaml:8 method.use_dora 'dora' does not go with a base in 8b",
    "base.quantization=4bit method.type=last-layers": "'last-layers' does not go with a base in 4bit: it trains the ba",
    "base.quantization=4bit method.type=loha": "'loha' does not go with a base in 4bit: PEFT takes the shape of the pa",
    "base.quantization=8bit training.distributed=fsdp": "training.distributed fsdp cannot shard a base in 8bit. Us",
    "base.quantization=4-bit": "base.quantization unknown quantization '4-bit'. Did you mean '4bit'?",
    "base.quantization=8": "base.quantization should be '8bit' or '4bit', not 8.",
    "training.optim=adamw_8bits": "unknown optim 'adamw_8bits'. Did you mean 'adamw_8bit'?",
    "training.optim=paged_adamw_32bit": "'paged_adamw_32bit' moves its state out of a full GPU, and this run computes",
}


@pytest.mark.parametrize(("options", "message"), REFUSED.items())
def test_conflicts_are_reported_before_base_is_loaded(tiny_base, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("peftlab.base.load_base", lambda *_, **__: pytest.fail("the base was loaded"))
    recipe = recipe_for(tmp_path / "rows", tiny_base, "classes")
    recipe.write_text(recipe.read_text().replace("  r: 4\n", "  use_dora: false\n"))
    if "type" in options:
        recipe.write_text(recipe.read_text().replace("method:\n  use_dora: false\n", ""))
    given = [part for option in options.split() for part in ("-o", option)]
    if "use_dora" in options:
        recipe.write_text(recipe.read_text().replace("use_dora: false", "use_dora: true"))
        given = given[:2]
    result = run("tune", recipe, "--store", tmp_path / "store", "--device", "cpu", *given)
    assert result.exit_code == 2, result.output
    assert message in one_line(result.output)


def test_bitsandbytes_optimizers_need_supported_device():
    for device, count in (("cuda", 0), ("cpu", 1), ("mps", 2)):
        errors = ErrorCollector()
        for name in ("adamw_8bit", "paged_adamw_8bit", "adamw_torch_fused"):
            check_optimizer(TrainingSection(optim=name), torch.device(device), errors)
        assert len(errors.issues) == count


# training


def state(recipe, folder, **changes):
    """The weights of delta and head after a short run, and its mean losses."""
    heard = Losses()
    overrides = {f"{key.replace('__', '.')}": value for key, value in changes.items()}
    result = tune(recipe, overrides=overrides, store=folder, device="cpu", progress=heard)
    return load_weights(result.adapter), heard.losses


def load_weights(adapter):
    from safetensors.torch import load_file

    return load_file(adapter.folder / "adapter_model.safetensors")


AS_USUAL = ["adamw_torch", "adamw_8bit", "adamw_bnb_8bit"]  # in bytes only from 4,096 numbers a tensor on
OTHERS = ["adafactor", "adagrad", "rmsprop", "sgd", "lion_32bit", "lion_8bit"]


@pytest.fixture(scope="module")
def usual(tiny_base, tmp_path_factory):
    """The weights that the usual optimizer comes to."""
    folder = tmp_path_factory.mktemp("usual")
    return state(recipe_for(folder / "rows", tiny_base, "classes"), folder / "store")[0]


@pytest.mark.parametrize("optim", [*AS_USUAL, *OTHERS])
def test_every_optimizer_changes_weights(tiny_base, usual, tmp_path, optim):
    recipe = recipe_for(tmp_path / "rows", tiny_base, "classes")
    changed, losses = state(recipe, tmp_path / "store", training__optim=optim)
    assert losses
    assert all(tensor.isfinite().all() for tensor in changed.values())
    far = [name for name in usual if not torch.allclose(usual[name], changed[name], atol=1e-6)]
    assert (far == []) == (optim in AS_USUAL)


@pytest.mark.parametrize(("name", "method", "quantization"), [
    ("bert", "lora", None), ("bert", "bottleneck", "8bit"), ("llama", "lora", "4bit"), ("bert", "last-layers", None),
    ("modernbert", "ia3", None), ("distilbert", "head", "8bit"),
])  # fmt: skip
def test_gradient_checkpointing_gives_same_weights(folder, tmp_path, name, method, quantization):
    """Beside the fast steps and the cache of frozen layers. Gradients of every method are in test_method_matrix.py."""
    recipe = recipe_for(tmp_path / "rows", folder(name), "classes")
    recipe.write_text(recipe.read_text().replace("method:\n  r: 4\n", ""))
    changes = {"method__type": method, "base__quantization": quantization}
    if method == "ia3":
        changes["method__target_modules"] = ["Wi"]
    mine, losses = state(recipe, tmp_path / "store", training__gradient_checkpointing=True, **changes)
    theirs, expected = state(recipe, tmp_path / "store", **changes)
    assert losses == pytest.approx(expected, abs=1e-5)
    for tensor in theirs:
        torch.testing.assert_close(mine[tensor], theirs[tensor], rtol=0, atol=1e-5)


def test_gradient_checkpointing_recomputes_layers(tiny_base, tmp_path):
    run = prepared_run(recipe_for(tmp_path, tiny_base, "classes"), {"training.gradient_checkpointing": True})
    from peftlab.tuning.progress import Progress
    from peftlab.tuning.training_loop import run_trainer

    calls = []
    layer = run.model.get_submodule("base_model.model.bert.encoder.layer.1.output.dense")
    layer.register_forward_pre_hook(lambda module, _: calls.append(torch.is_grad_enabled() and module.training))
    run_trainer(run, tmp_path, progress=Progress())
    steps = -(-len(run.train_features) // 4)
    assert sum(calls) == 2 * steps


def test_architecture_without_gradient_checkpointing_is_refused(tmp_path, tiny_base):
    shutil.copytree(tiny_base, tmp_path / "base")
    config = MPNetConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    MPNetModel(config).save_pretrained(tmp_path / "base")
    recipe = recipe_for(tmp_path / "rows", tmp_path / "base", "classes")
    with pytest.raises(
        RecipeError, match=r"training.gradient_checkpointing: Transformers' 'mpnet' does not support gradient"
    ):
        prepared_run(recipe, {"training.gradient_checkpointing": True})


@pytest.mark.parametrize("quantization", LAYERS)
@pytest.mark.parametrize("layers", [None, [1]])
def test_bfloat16_training_restores_base_dtype(tiny_base, tmp_path, quantization, layers):
    changes = {"base.quantization": quantization, "training.bf16": True, "method.layers_to_transform": layers}
    run = prepared_run(recipe_for(tmp_path, tiny_base, "classes"), changes)
    before = {name: tensor.clone() for name, tensor in run.base.model.state_dict().items()}
    inputs = run.model_inputs(run.train_features[:4])
    with fast_steps(run.model, run.recipe, run.dtype, inputs), run.autocast():
        forward(run.task, run.model, run.base.inputs, run.train_features)
        norms = [p for name, p in run.model.named_parameters() if "LayerNorm" in name]
        assert {p.dtype for p in norms} == {torch.float32}
        run.model(**inputs)[0].sum().backward()
    after = run.base.model.state_dict()
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in before.items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_quantized_base_trains_in_fp32_on_cpu_by_default(tiny_base, tmp_path):
    recipe = recipe_for(tmp_path, tiny_base, "classes")
    assert prepared_run(recipe, {"base.quantization": "8bit"}).dtype == torch.float32
    assert prepared_run(recipe, {"base.quantization": "8bit", "training.bf16": True}).dtype == torch.bfloat16


# store and runtime


def test_manifest_card_and_commands_show_quantization(store, tiny_base, tmp_path):
    manifest = Store(store).resolve("lora-8bit").manifest
    held, whole = manifest.base.memory.in_memory, manifest.base.memory.fp32
    assert manifest.base.quantization == "8bit"
    assert held < whole
    result = f"8bit: {held / 1e6:.1f} MB of memory, in fp32 {whole / 1e6:.1f} MB"
    assert result in (store / "lora-8bit" / "1" / "README.md").read_text()
    assert result in one_line(run("adapters", "show", "lora-8bit", "--store", store).output)
    recipe = recipe_for(tmp_path / "rows", tiny_base, "classes")
    shown = run("tune", recipe, "-o", "base.quantization=8bit", "--store", tmp_path / "store", "--device", "cpu")
    assert f"{held / 1e6:.1f} MB of memory in 8bit; in fp32 {whole / 1e6:.1f} MB" in one_line(shown.output)
    assert "is quantized to" not in (store / "lora-fp32" / "1" / "README.md").read_text()


@pytest.mark.parametrize("quantization", LAYERS)
def test_model_card_code_loads_adapter(store, tiny_base, quantization):
    adapter = Store(store).resolve(f"bottleneck-{quantization}")
    code = (adapter.folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code.replace("path/to/this/folder", str(adapter.folder)), names)
    layers = [module for module in names["model"].modules() if isinstance(module, LAYERS[quantization])]
    assert len(layers) == 13  # six in each layer, and the pooler
    assert type(names["base"].classifier.original_module) is torch.nn.Linear


@pytest.mark.parametrize("quantization", LAYERS)
def test_methods_on_quantized_base_match_plain_peft(store, tiny_base, quantization):
    bank = peftlab.load(f"lora-{quantization}", f"bottleneck-{quantization}", store=store, device="cpu")
    assert bank.warnings == []
    for _ in range(2):
        for name in bank.names:
            task = bank.task(name)
            plain = plain_base(task.head.auto_class, tiny_base, quantization, ["classifier"], num_labels=3)
            plain = PeftModel.from_pretrained(plain, bank.adapter(name).folder).eval()
            rows = [task.read_input(Row({"text": text}, "")) for text in TEXTS]
            features = [f for row in rows for f in task.encode([row], bank.base.inputs, 64, training=False)[0]]
            mine, theirs = (forward(task, model, bank.base.inputs, features) for model in (bank.model(name), plain))
            assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True)), name


@pytest.mark.parametrize("quantization", LAYERS)
def test_adapters_share_quantized_weights(store, quantization):
    bank = peftlab.load(f"lora-{quantization}", f"bottleneck-{quantization}", store=store, device="cpu")
    weights = [
        {p.data_ptr() for p in bank.model(name).parameters() if p.dtype in (torch.int8, torch.uint8)}
        for name in bank.names
    ]
    assert weights[0] == weights[1]
    assert len(weights[0]) == 13


def test_different_quantization_is_refused_with_hint(store):
    with pytest.raises(IntegrityError, match=r"lora-4bit@1 was tuned on its base in 4bit, but the base in memory is"):
        peftlab.load("lora-8bit", "lora-4bit", store=store, device="cpu")
    result = run("predict", "lora-fp32,lora-8bit", TEXTS[0], "--store", store, "--device", "cpu")
    assert result.exit_code == 4
    assert "in 8bit, but the base in memory is in fp32" in one_line(result.output)
    assert "--quantization none, 8bit or 4bit" in one_line(result.output)


@pytest.mark.parametrize("option", ["none", "8bit", "4bit"])
def test_quantization_option_shares_one_base_with_warning(store, option):
    names = ["lora-8bit", "lora-4bit", "bottleneck-fp32"]
    bank = peftlab.load(*names, store=store, device="cpu", quantization=option)
    tuned_so = {"none": "bottleneck-fp32", "8bit": "lora-8bit", "4bit": "lora-4bit"}[option]
    assert [note.split("@")[0] for note in bank.warnings] == [name for name in names if name != tuned_so]
    result = run("predict", ",".join(names), *TEXTS, "--store", store, "--quantization", option, "--json")
    assert result.exit_code == 0, result.output
    runs_on = option if option != "none" else "fp32"
    assert one_line(result.stderr).count(f"and runs on it in {runs_on}: the scores in its manifest do not apply") == 2
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == 6


def test_evaluation_warns_of_different_quantization(store, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "nobody came .", "label": "good"}\n')
    arguments = ("evaluate", "lora-8bit", "--data", file, "--store", store, "--device", "cpu")
    assert "note:" not in run(*arguments).output
    result = run(*arguments, "--quantization", "none")
    assert "note: lora-8bit@1 was tuned on its base in 8bit and runs on it in fp32" in one_line(result.output)


def test_unknown_quantization_lists_known_ones(store):
    with pytest.raises(ValueError, match=r"no quantization '16bit'. Did you mean '8bit'\? Known: 4bit, 8bit, none."):
        peftlab.load("lora-8bit", store=store, quantization="16bit")


def test_method_without_quantization_support_is_refused(tiny_base, tmp_path):
    recipe = recipe_for(tmp_path / "rows", tiny_base, "classes", method={"use_dora": True})
    tune(recipe, store=tmp_path / "store", device="cpu")
    result = run("predict", "classes", TEXTS[0], "--store", tmp_path / "store", "--quantization", "8bit")
    assert result.exit_code == 4
    assert "classes@1 cannot be loaded on this base: 'dora' does not go with a base in 8bit" in one_line(result.output)


def test_unsupported_quantized_training_is_reported(folder, tmp_path):
    recipe = recipe_for(tmp_path / "rows", folder("gpt2"), "classes")
    recipe.write_text(recipe.read_text().replace("method:\n  r: 4\n", ""))
    changes = {"method": {"type": "oft", "oft_block_size": 16}, "base.quantization": "8bit"}
    tune(recipe, overrides=changes, store=tmp_path / "store", device="cpu")
    result = run("predict", "classes", TEXTS[0], "--store", tmp_path / "store", "--quantization", "none")
    assert result.exit_code == 4
    assert "classes@1 does not fit its base" in one_line(result.output)


@pytest.mark.parametrize("quantization", LAYERS)
def test_frozen_layers_of_quantized_base_are_cached(tiny_base, tmp_path, quantization):
    recipe = recipe_for(tmp_path / "rows", tiny_base, "classes")
    recipe.write_text(recipe.read_text().replace("method:\n  r: 4\n", ""))
    given = ("-o", "method.type=head", "-o", f"base.quantization={quantization}", "--device", "cpu")
    result = run("tune", recipe, "--store", tmp_path / "store", *given)
    assert result.exit_code == 0, result.output
    assert "2 of 2 layers are frozen" in one_line(result.output)
