"""Every method on every architecture: it trains what it may, learns, and is the same after saving; or is refused."""

import functools
import hashlib
import re
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from peftlab.base import load_with_head
from peftlab.errors import RecipeError
from peftlab.methods import METHODS as ALL_METHODS
from peftlab.methods import method_info
from peftlab.methods.architectures import ARCHITECTURES
from peftlab.recipe import PEFT_METHODS
from peftlab.tuning import Progress
from peftlab.tuning.memory import gradient_checkpointing
from peftlab.tuning.training_loop import training_context
from tests.architectures import build
from tests.matrix_page import PAGE, matrix_page, write_page
from tests.runs import prepared_run
from tests.task_stores import recipe_for

SMALL = {  # PEFT's defaults are for wider layers than these
    "c3a": {"block_size": 16},
    "delora": {"delora_lambda": 4},
    "fourierft": {"n_frequency": 100},
    "gralora": {"r": 4, "alpha": 8},
    "hira": {"r": 4},
    "lily": {"scaling": 0.3},
    "miss": {"r": 4},
    "oft": {"oft_block_size": 16},
    "peanut": {"r": 4},
    "psoft": {"r": 4},
    "road": {"group_size": 16},
    "shira": {"r": 2, "random_seed": 1},
    "randlora": {"r": 4, "randlora_alpha": 40},
    "supertuning": {"sparsity": 0.9},
    "vblora": {"num_vectors": 32, "vector_length": 16, "r": 4},
    "vera": {"r": 16},
    "waveft": {"n_frequency": 100},
}
METHODS = {
    "lora": {"type": "lora", "r": 4},
    "rslora": {"type": "lora", "r": 4, "use_rslora": True},
    "dora": {"type": "lora", "r": 4, "use_dora": True},
    "orthogonal": {"type": "lora", "r": 4, "init_lora_weights": "orthogonal"},
    "adalora": {"type": "adalora", "target_r": 2, "init_r": 4},
    "houlsby": {"type": "bottleneck", "variant": "houlsby", "reduction_factor": 4},
    "pfeiffer": {"type": "bottleneck", "variant": "pfeiffer", "reduction_factor": 4},
    "parallel": {"type": "bottleneck", "variant": "parallel"},
    "ia3": {"type": "ia3"},
    "prefix": {"type": "prefix", "num_virtual_tokens": 8},
    "prefix-projected": {"type": "prefix", "num_virtual_tokens": 4, "prefix_projection": True},
    "prompt": {"type": "prompt", "num_virtual_tokens": 8},
    "p-tuning": {"type": "p-tuning", "num_virtual_tokens": 4},
    "p-tuning-lstm": {"type": "p-tuning", "num_virtual_tokens": 4, "encoder_reparameterization_type": "LSTM"},
    **{name: {"type": name, **SMALL.get(name, {})} for name in PEFT_METHODS},
    "bitfit": {"type": "bitfit"},
    "ln-tuning": {"type": "ln-tuning"},
    "head": {"type": "head"},
    "last-layers": {"type": "last-layers", "layers": 1},
    "full": {"type": "full"},
}
BASES = ["bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert", "llama", "qwen2", "gpt2"]
QUANTIZATIONS = [None, "8bit", "4bit"]
LINEAR_ONLY = [
    *("beft", "c3a", "delora", "glora", "hra", "lily", "loha"),
    *("lokr", "miss", "oft", "peanut", "psoft", "road", "shira", "supertuning"),
]
REFUSED = {
    **{(method, "gpt2", None): f"PEFT cannot put '{method}' on this base: .*Conv1D" for method in LINEAR_ONLY},
}
STEPS = 20


def quantization_error(method, quantization):
    """Why a method of `METHODS` does not go with a quantized base; None where it does."""
    fields = METHODS[method]
    conflict = method_info(fields["type"]).quantization_error(fields["type"], fields, quantization)
    return conflict and conflict[1]


def refusal(method, base, quantization):
    """What is said of a cell that is refused, as a regular expression; None for those that work."""
    if conflict := quantization_error(method, quantization):
        return re.escape(conflict)
    if method == "ia3" and base in ("modernbert", "gpt2"):
        return f"peftlab knows no key or value projections of '{base}'"
    if method == "bitfit" and base in ("modernbert", "llama"):
        return f"no module of this '{base}' has a bias"
    return REFUSED.get((method, base, quantization))


CELLS = [(method, base, quantization) for quantization in QUANTIZATIONS for method in METHODS for base in BASES]


def in_short(method, base, quantization):
    """Whether a cell runs without --whole-matrix: each method on four bases in fp32, on one each in 8bit and 4bit."""
    turn = list(METHODS).index(method) + 4 * QUANTIZATIONS.index(quantization)
    there = (BASES.index(base) - turn) % len(BASES)
    return there in ((0, 2, 4, 6) if quantization is None else (0,))


def cells(*, refused):
    """The cells that are refused, or those that work."""
    return [marked(*cell) for cell in CELLS if bool(refusal(*cell)) == refused]


def marked(*cell):
    name = "-".join(part or "fp32" for part in cell)
    return pytest.param(*cell, id=name, marks=() if in_short(*cell) else pytest.mark.whole_matrix)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return functools.cache(lambda name: enlarge_weights(build(name, tmp_path_factory.mktemp(name))))


def enlarge_weights(folder, factor=8):
    """Weights as large as those of trained bases, so that one text differs from another."""
    file = folder / "model.safetensors"
    tensors = {name: factor * tensor if tensor.dim() > 1 else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.fixture
def cell(folder_of, tmp_path):
    def prepared(method, base, quantization=None):
        recipe = recipe_for(
            tmp_path / "data", folder_of(base), "classes", training={"base_dropout": False, "bf16": False}
        )
        method = METHODS[method] if isinstance(method, str) else method
        return prepared_run(recipe, {"method": method, "base.quantization": quantization})

    return prepared


def hash_of(tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def frozen(run):
    """All that must stay as it is: the base's weights, with the statistics of quantized ones."""
    every = run.model.named_parameters(remove_duplicate=False)  # layers may share what a method holds once
    trained = {name for name, parameter in every if parameter.requires_grad}
    return [tensor for name, tensor in sorted(run.model.state_dict().items()) if name not in trained]


def learn(run):
    """Some steps on the training rows, without dropout; the losses."""
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    batch = run.task.head.collate(run.train_features, run.base.inputs)
    labels, losses = batch.pop("labels"), []
    run.model.train()
    for _ in range(STEPS):
        loss = run.task.head.loss(run.task.head.logits(run.model(**batch)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@torch.no_grad()
def logits_of(run, model):
    return run.task.head.logits(model.eval()(**run.model_inputs(run.train_features)))


def base_logits(run):
    with run.model.disable_adapter():
        return logits_of(run, run.model)


def fresh_base(run):
    return load_with_head(run.base.files, run.task, quantization=run.base.quantization)[0]


@pytest.mark.parametrize(("method", "base", "quantization"), cells(refused=False))
def test_method_trains_only_its_parameters_and_reloads_equal(
    cell, tmp_path, record_property, method, base, quantization
):
    record_property("cell", (method, base, quantization))
    check_contract(cell(method, base, quantization), tmp_path)


def check_contract(run, tmp_path):
    before, bare = hash_of(frozen(run)), base_logits(run)
    (tmp_path / "run").mkdir()
    with training_context(run, tmp_path / "run", Progress()):  # with the functions that `tune` trains with
        losses = learn(run)
    assert losses[-1] < 0.95 * losses[0]
    assert hash_of(frozen(run)) == before
    assert torch.equal(base_logits(run), bare)
    assert torch.equal(bare, logits_of(run, with_the_head_of(run, fresh_base(run))))
    expected = logits_of(run, run.model)
    assert not torch.equal(expected, bare)
    assert_same_gradients_with_checkpointing(run)
    run.model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    reloaded = PeftModel.from_pretrained(fresh_base(run), tmp_path / "saved")
    assert torch.equal(logits_of(run, reloaded), expected)
    if run.base.quantization:
        assert_equal_on_dequantized_weights(run, tmp_path / "saved")


POOLED = [
    ("lora", "bert", "4bit", "relations", "auto"),
    ("houlsby", "roberta", "8bit", "classes", "mean"),
    ("prefix", "distilbert", None, "classes", "max"),
    ("prompt", "modernbert", None, "relations", "auto"),
    ("vera", "llama", None, "classes", "last"),
    ("full", "electra", None, "classes", "mean"),
    ("last-layers", "gpt2", None, "relations", "auto"),
    ("head", "deberta-v2", None, "classes", "mean"),
]


@pytest.mark.parametrize(("method", "base", "quantization", "kind", "pooling"), POOLED)
def test_contract_holds_with_a_head_that_pools(folder_of, tmp_path, method, base, quantization, kind, pooling):
    recipe = recipe_for(tmp_path / "data", folder_of(base), kind, training={"base_dropout": False, "bf16": False})
    fields = {"method": METHODS[method], "base.quantization": quantization, "base.pooling": pooling}
    run = prepared_run(recipe, fields)
    assert run.task.head.pooling == ("entity-start" if pooling == "auto" else pooling)
    check_contract(run, tmp_path)


def assert_same_gradients_with_checkpointing(run):
    gradients = []
    for wanted in (False, True):
        with gradient_checkpointing(run.model.get_base_model(), enabled=wanted):
            run.model.train().zero_grad()
            run.task.head.logits(run.model(**run.model_inputs(run.train_features))).pow(2).sum().backward()
        trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
        gradients.append([None if p.grad is None else p.grad.clone() for p in trained])
    for one, other in zip(*gradients, strict=True):
        assert one is other is None or torch.equal(one, other)


def assert_equal_on_dequantized_weights(run, saved):
    """The adapter does to a quantized base what it does to plain layers that hold the same rounded weights.

    The quantized one trains, without dropout: then its 8-bit layers do not round what they are given.
    """
    plain = PeftModel.from_pretrained(fresh_base(run).dequantize(torch.float32), saved)
    with torch.no_grad():
        mine = run.task.head.logits(run.model.train()(**run.model_inputs(run.train_features)))
    torch.testing.assert_close(mine, logits_of(run, plain), rtol=1e-3, atol=1e-3)


def with_the_head_of(run, plain):
    """The base without PEFT, under the fresh head that the run began with, which is random."""
    own = dict(plain.named_parameters())
    for name, parameter in run.base.model.named_parameters():
        if ".original_module." in name and (plainly := name.replace(".original_module", "")) in own:
            own[plainly].data.copy_(parameter)
    return plain


@pytest.mark.parametrize(("method", "base", "quantization"), cells(refused=True))
def test_unsupported_combination_raises_recipe_error(cell, record_property, method, base, quantization):
    record_property("cell", (method, base, quantization))
    with pytest.raises(RecipeError, match=refusal(method, base, quantization)) as error:
        cell(method, base, quantization)
    record_property("refused", error.value.errors[0].message)


@pytest.mark.parametrize(
    ("method", "quantization"),
    [(method, q) for method in METHODS for q in QUANTIZATIONS if quantization_error(method, q)],
)
def test_quantization_limit_is_still_necessary(cell, tmp_path, monkeypatch, method, quantization):
    """If this fails, PEFT supports it now, and the reason can be deleted from the method's `info`."""
    monkeypatch.setattr("peftlab.recipe.method.MethodInfo.quantization_error", lambda *_: None)
    with pytest.raises(Exception, match=r"\w"):
        check_contract(cell(method, "bert", quantization), tmp_path)


def report_of(cell, outcome="passed", **properties):
    properties = [("cell", cell), *properties.items()]
    return SimpleNamespace(when="call", passed=outcome == "passed", user_properties=properties)


def test_page_keeps_parts_without_reports(tmp_path):
    file = tmp_path / "matrix.md"
    methods = [report_of(("lora", "bert", None))]
    outcomes = {"NER": "ok", "QA": "(fnet) gives a row other outputs, by 0.3: padding. Then more."}
    found = [SimpleNamespace(when="call", passed=True, user_properties=[("architecture", ("fnet", outcomes))])]
    write_page(file, methods)
    write_page(file, found)
    write_page(file, methods)
    page = file.read_text(encoding="utf8")
    assert "| lora | ok |\n\n## Architectures and tasks\n" in page
    assert "- **a**: the model gives a row other outputs: padding.\n" in page
    assert page.endswith("|  | NER | QA |\n| --- | --- | --- |\n| fnet | ok | a |\n")


def test_matrix_page_lists_each_outcome():
    reports = [
        report_of(("lora", "bert", None)),
        report_of(["lora", "gpt2", None], "failed"),
        report_of(("hra", "gpt2", None), refused="PEFT cannot put 'hra' on this base: no Linear. Only these."),
        SimpleNamespace(when="call", passed=True, user_properties=[]),
    ]
    page = matrix_page(reports)
    assert "1. PEFT cannot put it on this base: no Linear.\n" in page
    assert page.endswith(
        "## A base in fp32\n\n|  | bert | gpt2 |\n| --- | --- | --- |\n| lora | ok | fails |\n| hra | not run | 1 |\n"
    )


def test_matrix_page_in_docs_is_complete():
    """If this fails: make matrix."""
    page = PAGE.read_text(encoding="utf8")
    assert page.count(f"| {' | '.join(BASES)} |") == len(QUANTIZATIONS)
    assert all(page.count(f"\n| {method} |") == len(QUANTIZATIONS) for method in METHODS)


def test_each_quantization_limit_is_in_the_matrix():
    """Each reason that a method has is reached by a line of `METHODS`."""
    reasons = {
        f"'{limits.name or name}' does not go with a base in {quantization}: {reason}."
        for name in ALL_METHODS
        for limits in method_info(name).limits
        for quantization, reason in limits.quantization.items()
    }
    assert reasons == {quantization_error(method, q) for method in METHODS for q in QUANTIZATIONS} - {None}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"type": "bottleneck", "target_modules": ["output.dens"]},
            "'output.dens' matches no module of this base. Did you mean 'output'?",
        ),
        ({"type": "bottleneck", "layers_to_transform": 7}, "there is no layer 7. Layers of this base: 0 to 1."),
        ({"type": "last-layers", "layers": 2}, "this base has 2 layers; all but the first can train. Take 1 to 1."),
        (
            {"type": "ia3", "target_modules": ["key"], "feedforward_modules": ["fc9"]},
            "'fc9' matches no Linear layer of this base.",
        ),
    ],
)
def test_wrong_method_section_lists_existing_names(cell, method, message):
    with pytest.raises(RecipeError) as error:
        cell(method, "bert")
    assert message in str(error.value)


def test_unknown_architecture_requires_target_modules(cell, monkeypatch):
    monkeypatch.setattr("peftlab.methods.bottleneck.ARCHITECTURES", {"gpt2": None})
    with pytest.raises(RecipeError, match=r"does not know where the sub-layers of 'bert' end. Name the modules"):
        cell("pfeiffer", "bert")
    named = {"type": "bottleneck", "variant": "houlsby", "target_modules": ["output.dense"], "reduction_factor": 4}
    assert len([m for m in cell(named, "bert").model.modules() if type(m).__name__ == "BottleneckLayer"]) == 4


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_architecture_has_targets_in_each_layer(kind):
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind))
    config, names = model.config, [name for name, _ in model.named_modules()]
    layers = config.num_hidden_layers + (getattr(config, "num_decoder_layers", None) or 0)
    if kind in ("bart", "mbart"):
        layers = config.encoder_layers + config.decoder_layers
    place = ARCHITECTURES[kind]
    assert len(place.bottleneck_targets("houlsby", names)[0]) == 2 * layers
    assert len(place.bottleneck_targets("pfeiffer", names)[0]) == layers
    assert len(place.bottleneck_targets("parallel", names)[0]) == (layers if place.parallel else 0)
    across = layers // 2 if config.is_encoder_decoder else 0  # a decoder's layer attends to the encoder as well
    outputs, inputs = place.ia3_targets(names)
    assert len(outputs) == (2 * (layers + across) if place.keys_and_values else 0)
    assert len(inputs) == layers
    modules = dict(model.named_modules())
    pfeiffer = [type(modules[name]).__name__.lower() for name in place.bottleneck_targets("pfeiffer", names)[0]]
    assert all("norm" in name for name in pfeiffer) == (place.pfeiffer[1] == "around-norm")


def test_parallel_without_feed_forward_module_raises_recipe_error(cell, monkeypatch):
    monkeypatch.setattr("peftlab.methods.bottleneck.ARCHITECTURES", {"bert": ARCHITECTURES["bart"]})
    with pytest.raises(
        RecipeError, match=r"method.variant: 'parallel' is impossible in 'bert': .* Take houlsby or pfe"
    ):
        cell("parallel", "bert")
