"""Frozen layers: found in any architecture, run without dropout and once per row, with the same results."""

import functools
from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from torch import nn

from peftlab.tuning import Progress
from peftlab.tuning.checkpoints import RUN_FILE
from peftlab.tuning.evaluate import evaluate_split
from peftlab.tuning.frozen.activation_cache import cached_activations
from peftlab.tuning.frozen.activation_file import Activations, Writer, hash_inputs
from peftlab.tuning.frozen.layers import find_frozen_prefix
from peftlab.tuning.training_loop import run_trainer
from tests.architectures import build
from tests.runs import prepared_run
from tests.task_stores import recipe_for

HEAD = {"type": "head"}
LAST = {"type": "lora", "layers_to_transform": 1, "lora_dropout": 0.1}
WHOLE = {"type": "last-layers", "layers": 1}
PFEIFFER = {"type": "bottleneck", "layers_to_transform": [1]}
KEYS = {"type": "prefix", "layers_to_transform": [1]}  # virtual tokens only in layer 1
FIVE = ["bert", "roberta", "distilbert", "deberta-v2", "modernbert"]


class InfoRecorder(Progress):
    def __init__(self):
        self.notes = []
        self.computed = []

    def info(self, message):
        self.notes.append(message)

    def track_activation_caching(self, split):
        return nullcontext(lambda done, total: self.computed.append((done, total)))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return functools.cache(lambda name: build(name, tmp_path_factory.mktemp(name)))


@pytest.fixture
def prepared(folder_of, tmp_path):
    """A function that returns a run which is ready to train."""

    def prepared(architecture="bert", kind="classes", method=None, **training):
        training = {"num_train_epochs": 3, "per_device_eval_batch_size": 2, "bf16": False, **training}
        file = recipe_for(tmp_path / "data", folder_of(architecture), kind, training=training)
        return prepared_run(file, {"method": method or HEAD, "data.max_lost": 1.0})

    return prepared


def calls_of(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def lowest_linear(run):
    return next(m for name, m in run.model.named_modules() if isinstance(m, nn.Linear) and ".0." in name)


def trained(run, folder):
    """Train in `folder`; returns progress, cached forward, calls of the lowest layer, files, weights and log."""
    folder.mkdir()
    progress, seen = InfoRecorder(), {}

    @contextmanager
    def recorded_cache(*arguments):
        with cached_activations(*arguments) as seen["forward"]:
            seen.update(calls=calls_of(lowest_linear(run)), files={file.name for file in folder.iterdir()} - {RUN_FILE})
            yield

    with mock.patch("peftlab.tuning.training_loop.cached_activations", recorded_cache):
        log = run_trainer(run, folder, progress=progress)
    forward, calls, files = seen["forward"], seen["calls"], seen["files"]
    weights = {name: p.detach() for name, p in run.model.named_parameters() if p.requires_grad}
    assert not list(folder.glob("*.bin"))
    return progress, forward, len(calls), files, weights, log


def validation(log):
    return [{name: value for name, value in entry.items() if name.startswith("eval_")} for entry in log]


def difference(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize(
    "method", [HEAD, LAST, WHOLE, PFEIFFER, KEYS], ids=["head", "lora", "whole layer", "bottleneck", "virtual keys"]
)
@pytest.mark.parametrize("architecture", FIVE)
def test_activation_cache_matches_weights_and_scores(prepared, tmp_path, architecture, method):
    """Equal up to the last bit on these sizes. In both runs dropout is on in the adapted layer and the head."""
    kind = "classes" if method is HEAD else "entities"
    progress, forward, calls, files, first, log = trained(prepared(architecture, kind, method), tmp_path / "with")
    without = prepared(architecture, kind, method, frozen_cache=None)
    _, none, calls_without, no_files, second, log_without = trained(without, tmp_path / "without")
    assert (forward.num_misses, calls, files) == (0, 0, {"frozen-train-0.bin", "frozen-validation-0.bin"})
    assert (none, no_files) == (None, set())
    assert calls_without > 0
    assert difference(first, second) <= 1e-6
    assert validation(log) == validation(log_without)
    frozen = 2 if method is HEAD else 1
    assert progress.notes == [
        f"{frozen} of 2 layers are frozen. They run without dropout and only once per row (0 MB are cached)."
    ]
    assert progress.computed[-1] == (len(without.train_features), len(without.train_features))


def test_dropout_after_frozen_layers_is_enabled(prepared, tmp_path):
    run = prepared(method=LAST)
    with cached_activations(run, tmp_path, InfoRecorder()):
        run.model.train()
        batch = run.task.head.collate(run.train_features[:4], run.base.inputs)
        batch.pop("labels")
        one, other = (run.model(**batch).logits for _ in range(2))
        modes = {name: module.training for name, module in run.base.model.named_modules()}
    assert not torch.equal(one, other)
    assert not modes["bert.embeddings.dropout"]
    assert not modes["bert.encoder.layer.0.output.dropout"]
    assert modes["bert.encoder.layer.1.output.dropout"]
    assert modes["dropout"]


def test_windows_relations_and_bf16_hit_cache(prepared, tmp_path):
    _, forward, calls, *_ = trained(prepared(kind="answers"), tmp_path / "windows")
    assert (forward.num_misses, calls) == (0, 0)
    run = prepared(kind="relations")
    assert "entity_positions" in run.model_inputs(
        run.train_features[:2]
    )  # what only the head reads is no layer's input
    _, forward, calls, *_ = trained(run, tmp_path / "relations")
    assert (forward.num_misses, calls) == (0, 0)
    _, forward, calls, *_ = trained(prepared(bf16=True), tmp_path / "bf16")
    assert (forward.num_misses, calls) == (0, 0)


def test_uncached_rows_are_computed(prepared, tmp_path):
    run = prepared()
    expected = evaluate_split(run, "test")
    with cached_activations(run, tmp_path, InfoRecorder()) as forward:
        del forward.files[1].spans[next(iter(forward.files[1].spans))]
        forward.files[0].spans.clear()
        found = evaluate_split(run, "test")
    assert forward.num_misses
    assert found == expected


@pytest.mark.parametrize(
    ("budget", "reason"),
    [(None, "training.frozen_cache is null"), ("1KB", "the cache takes 0 MB, and training.frozen_cache is 1KB")],
)
def test_cache_disabled_with_small_budget(prepared, tmp_path, budget, reason):
    progress, forward, calls, files, *_ = trained(prepared(frozen_cache=budget), tmp_path / "run")
    assert (forward, files) == (None, set())
    assert calls
    assert progress.notes == [f"2 of 2 layers are frozen. They run without dropout and again in every epoch: {reason}."]


def test_cache_disabled_with_full_disk(prepared, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Writer, "write", full)
    progress, forward, *_ = trained(prepared(), tmp_path / "run")
    assert forward is None
    assert "frozen-validation-0.bin cannot be written: No space left on device." in progress.notes[1]


def test_no_cache_if_first_layer_is_trainable(prepared, tmp_path):
    run, progress = prepared(method={"type": "lora"}), InfoRecorder()
    with cached_activations(run, tmp_path, progress) as forward:
        run.model.train()
        assert run.base.model.bert.embeddings.dropout.training
    assert (forward, progress.notes) == (None, [])


def test_no_frozen_layers_with_trainable_embeddings(prepared):
    run = prepared(method=LAST)
    assert find_frozen_prefix(run).num_frozen == 1
    run.base.model.bert.embeddings.LayerNorm.weight.requires_grad = True
    assert find_frozen_prefix(run) is None


def test_cache_rejects_activations_with_padding_effect(prepared, tmp_path):
    """BERT counts positions from the left edge of a batch, so left padding changes them."""
    run, progress = prepared(), InfoRecorder()
    run.base.inputs.tokenizer.padding_side = "left"
    with cached_activations(run, tmp_path, progress) as forward:
        assert forward is None
    assert "again in every epoch: the model's logits differ with the cache." in progress.notes[-1]
    assert not list(tmp_path.glob("*.bin"))


def test_cache_disabled_with_functional_dropout(prepared, tmp_path):
    run, progress = prepared(), InfoRecorder()
    model = run.base.model
    model.bert.embeddings.register_forward_hook(
        lambda module, args, output: nn.functional.dropout(output, 0.5, training=model.training)
    )
    with cached_activations(run, tmp_path, progress) as forward:
        assert forward is None
    assert progress.notes == [
        "Frozen layers run again in every epoch, with the base's dropout: they are random even without dropout."
    ]


def test_shared_layers_are_not_cached(prepared, tmp_path):
    run, progress = prepared(), InfoRecorder()
    layers = run.base.model.bert.encoder.layer
    layers[1] = layers[0]
    with cached_activations(run, tmp_path, progress) as forward:
        assert forward is None
    assert "are not a plain sequence" in progress.notes[0]


def test_cache_context_restores_model(prepared, tmp_path):
    run = prepared()
    state = torch.get_rng_state()
    with cached_activations(run, tmp_path, InfoRecorder()):
        names = run.model.state_dict().keys()
    assert names == run.model.state_dict().keys()
    assert torch.equal(state, torch.get_rng_state())
    for module in run.model.modules():
        assert not {"forward", "train"} & vars(module).keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        module.train()
    assert all(module.training for module in run.model.modules())


def test_row_key_ignores_padding():
    wide = {"input_ids": torch.tensor([[5, 6, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0, 0]])}
    left = {
        "input_ids": torch.tensor([[0, 5, 6]]),
        "attention_mask": torch.tensor([[0, 1, 1]]),
        "labels": torch.ones(9),
    }
    other = {"input_ids": torch.tensor([[6, 5, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    (one,), (same,), (different,) = (hash_inputs(one, "fp32").keys for one in (wide, left, other))
    assert one == same != different
    assert hash_inputs(wide, "bf16").keys != [one]
    assert hash_inputs({**wide, "token_type_ids": torch.tensor([[0, 1, 0, 0]])}, "fp32").keys != [one]
    assert hash_inputs({**wide, "pixels": torch.zeros(1, 3, 8)}, "fp32") is None
    assert hash_inputs({"input_ids": wide["input_ids"]}, "fp32") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_file_read_and_write(tmp_path, dtype):
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = hash_inputs({"input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]), "attention_mask": mask}, "")
    states = torch.randn(2, 3, 4).to(dtype)
    with (tmp_path / "states.bin").open("wb") as file:
        writer = Writer(file)
        writer.write(batch, states)
        writer.write(batch, states)  # a known row takes no more space
    assert (tmp_path / "states.bin").stat().st_size == 5 * 4 * dtype.itemsize
    kept = Activations(tmp_path / "states.bin", writer)
    expected = states * mask.unsqueeze(-1)
    assert torch.equal(kept.read(batch), expected)
    assert kept.read(hash_inputs({"input_ids": torch.tensor([[5]]), "attention_mask": torch.ones(1, 1)}, "")) is None
