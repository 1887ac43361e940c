"""Every method on every architecture: it trains what it may, learns, and is the same after saving; or is refused."""

import functools
import hashlib

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from peftlab.base import load_with_head
from peftlab.errors import RecipeError
from peftlab.methods.adapting import OTHERS
from peftlab.methods.placement import PLACEMENTS
from tests.architectures import build
from tests.runs import prepared_run
from tests.task_stores import recipe_for

SMALL = {  # PEFT's defaults are for wider layers than these
    "c3a": {"block_size": 16},
    "delora": {"delora_lambda": 4},
    "fourierft": {"n_frequency": 100},
    "gralora": {"r": 4, "alpha": 8},
    "hira": {"r": 4},
    "miss": {"r": 4},
    "oft": {"oft_block_size": 16},
    "peanut": {"r": 4},
    "psoft": {"r": 4},
    "road": {"group_size": 16},
    "shira": {"r": 2, "random_seed": 1},
    "pvera": {"r": 16},
    "randlora": {"r": 4, "randlora_alpha": 40},
    "vblora": {"num_vectors": 32, "vector_length": 16, "r": 4},
    "vera": {"r": 16},
    "waveft": {"n_frequency": 100},
}
METHODS = {
    "lora": {"type": "lora", "r": 4},
    "rslora": {"type": "lora", "r": 4, "use_rslora": True},
    "dora": {"type": "lora", "r": 4, "use_dora": True},
    "lora-plus": {"type": "lora", "r": 4, "init_lora_weights": "orthogonal", "loraplus_lr_ratio": 4.0},
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
    **{name: {"type": name, **SMALL.get(name, {})} for name in OTHERS},
    "bitfit": {"type": "bitfit"},
    "head": {"type": "head"},
    "last-layers": {"type": "last-layers", "layers": 1},
    "full": {"type": "full"},
}
BASES = ["bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert", "llama", "qwen2", "gpt2"]
LINEAR_ONLY = [
    *("beft", "c3a", "delora", "glora", "hra", "lily", "loha"),
    *("lokr", "miss", "oft", "peanut", "psoft", "road", "shira"),
]
REFUSED = {
    **{(method, "gpt2"): f"PEFT cannot put '{method}' on this base: .*Conv1D" for method in LINEAR_ONLY},
    ("ia3", "modernbert"): "no module of 'modernbert' is known to make keys or values alone",
    **{("bitfit", base): f"no module of this '{base}' has a bias" for base in ("llama", "modernbert")},
    ("ia3", "gpt2"): "no module of 'gpt2' is known to make keys or values alone",
}
CELLS = [(method, base) for method in METHODS for base in BASES if (method, base) not in REFUSED]
STEPS = 20


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return functools.cache(lambda name: livelier(build(name, tmp_path_factory.mktemp(name))))


def livelier(folder):
    """Weights as large as those of trained bases, so that one text differs from another."""
    file = folder / "model.safetensors"
    tensors = {name: 8 * tensor if tensor.dim() > 1 else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.fixture
def cell(folder_of, tmp_path):
    def prepared(method, base):
        recipe = recipe_for(tmp_path / "data", folder_of(base), "classes")
        return prepared_run(recipe, {"method": METHODS[method] if isinstance(method, str) else method})

    return prepared


def hash_of(tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()


def learn(run):
    """Some steps on the training rows, without dropout; the losses."""
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    batch = run.task.collate(run.features, run.base.tokenizer)
    labels, losses = batch.pop("labels"), []
    run.model.eval()
    for _ in range(STEPS):
        loss = run.task.loss(run.task.logits(run.model(**batch)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@torch.no_grad()
def logits_of(run, model):
    return run.task.logits(model.eval()(**run.inputs_of(run.features)))


@pytest.mark.parametrize(("method", "base"), CELLS)
def test_it_trains_only_what_it_may_learns_and_is_the_same_after_saving(cell, tmp_path, method, base):
    run = cell(method, base)
    untouched = logits_of(run, load_with_head(run.base.files, run.task)[0].eval()).shape
    frozen = [parameter for parameter in run.model.parameters() if not parameter.requires_grad]
    before, bare = hash_of(frozen), bare_logits(run)
    losses = learn(run)
    assert losses[-1] < 0.95 * losses[0]
    assert hash_of(frozen) == before
    assert torch.equal(bare_logits(run), bare)
    expected = logits_of(run, run.model)
    assert expected.shape == untouched
    run.model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    fresh, _ = load_with_head(run.base.files, run.task)
    reloaded = PeftModel.from_pretrained(fresh, tmp_path / "saved")
    assert torch.equal(logits_of(run, reloaded), expected)


def bare_logits(run):
    with run.model.disable_adapter():
        return logits_of(run, run.model)


@pytest.mark.parametrize(("method", "base"), CELLS)
def test_with_the_adapter_off_the_base_answers_bit_for_bit(cell, method, base):
    run = cell(method, base)
    plain, _ = load_with_head(run.base.files, run.task)
    own = dict(plain.named_parameters())
    for name, parameter in run.base.model.named_parameters():  # the fresh head is random: take the run's
        if ".original_module." in name and (plainly := name.replace(".original_module", "")) in own:
            own[plainly].data.copy_(parameter)
    learn(run)
    assert torch.equal(bare_logits(run), logits_of(run, plain))
    assert not torch.equal(bare_logits(run), logits_of(run, run.model))


@pytest.mark.parametrize(("method", "base"), list(REFUSED))
def test_what_cannot_work_is_refused_before_training_in_words(cell, method, base):
    with pytest.raises(RecipeError, match=REFUSED[method, base]):
        cell(method, base)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"type": "bottleneck", "target_modules": ["output.dens"]},
            "'output.dens' fits no module of this base. Did you mean 'output'?",
        ),
        ({"type": "bottleneck", "layers_to_transform": 7}, "there is no layer 7. Layers of this base: 0 to 1."),
        ({"type": "last-layers", "layers": 2}, "this base has 2 layers; all but the first can train. Take 1 to 1."),
        (
            {"type": "ia3", "target_modules": ["key"], "feedforward_modules": ["fc9"]},
            "'fc9' fits no Linear layer of this base.",
        ),
    ],
)
def test_a_wrong_section_is_told_with_what_is_there(cell, method, message):
    with pytest.raises(RecipeError) as told:
        cell(method, "bert")
    assert message in str(told.value)


def test_an_unknown_architecture_asks_for_the_modules(cell, monkeypatch):
    monkeypatch.setattr("peftlab.methods.bottleneck.PLACEMENTS", {"gpt2": None})
    with pytest.raises(RecipeError, match=r"does not know where the sub-layers of 'bert' end. Name the modules"):
        cell("pfeiffer", "bert")
    named = {"type": "bottleneck", "variant": "houlsby", "target_modules": ["output.dense"], "reduction_factor": 4}
    assert len([m for m in cell(named, "bert").model.modules() if type(m).__name__ == "BottleneckLayer"]) == 4


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_a_known_architecture_has_its_places_in_every_layer(kind):
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind))
    config, names = model.config, [name for name, _ in model.named_modules()]
    layers = config.num_hidden_layers + (getattr(config, "num_decoder_layers", None) or 0)
    if kind in ("bart", "mbart"):
        layers = config.encoder_layers + config.decoder_layers
    place = PLACEMENTS[kind]
    assert len(place.targets("houlsby", names)[0]) == 2 * layers
    assert len(place.targets("pfeiffer", names)[0]) == layers
    assert len(place.targets("parallel", names)[0]) == (layers if place.beside else 0)
    across = layers // 2 if config.is_encoder_decoder else 0  # a decoder's layer attends to the encoder as well
    outputs, inputs = place.rescaled(names)
    assert len(outputs) == (2 * (layers + across) if place.keys_and_values else 0)
    assert len(inputs) == layers
    modules = dict(model.named_modules())
    assert all("norm" in type(modules[name]).__name__.lower() for name in place.targets("pfeiffer", names)[0]) == (
        place.after[1] == "around-norm"
    )


def test_without_a_module_for_the_feed_forward_network_parallel_is_refused(cell, monkeypatch):
    monkeypatch.setattr("peftlab.methods.bottleneck.PLACEMENTS", {"bert": PLACEMENTS["bart"]})
    with pytest.raises(RecipeError, match=r"method.variant: 'parallel' has no place in 'bert', .* Take houlsby or pfe"):
        cell("parallel", "bert")
