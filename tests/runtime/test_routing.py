"""Rows of different adapters in one forward pass of the base: each answers as it does alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import peftlab
from peftlab.runtime import routing
from peftlab.tasks.registry import TASKS
from tests.architectures import build
from tests.methods.test_method_matrix import METHODS, enlarge_weights, refusal
from tests.serving import build_feature, max_mixed_difference, predict_each
from tests.task_stores import recipe_for

TEXTS = (
    "it rained .",
    "the train was late , it rained .",
    "nobody came .",
    "the room was clean but the bed too short .",
)
ROUTED = ("lora", "dora", "ia3", "pfeiffer", "prefix", "bitfit", "oft", "last-layers", "head")
KINDS = ("classes", "entities", "rating", "answers")
TOLERANCE = 1e-5


def input_row(bank, name, text):
    """A row with the columns of the adapter's task."""
    task = bank.task(name)
    columns = TASKS[task.type].input_columns(task)
    return dict(zip(columns, (text, TEXTS[0]), strict=False))


def first_feature(bank, name, text):
    return build_feature(bank, name, input_row(bank, name, text))[0]


def mixed_rows_differ(bank, names, **settings):
    return max_mixed_difference(
        bank, {(n, text): first_feature(bank, n, text) for n in names for text in TEXTS}, **settings
    )


def make_store(base, methods, folder):
    """An adapter of each method on one base, by turns of each kind of task."""
    for place, name in enumerate(methods):
        kind = KINDS[place % len(KINDS)]
        recipe = recipe_for(folder / kind, base, kind, training={"learning_rate": 2e-2})
        overrides = {"name": name, "method": METHODS[name]}
        peftlab.tune(recipe, overrides=overrides, store=folder / "store", device="cpu")
    return folder / "store"


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routed")
    base = enlarge_weights(build("bert", folder))
    return peftlab.load(*ROUTED, store=make_store(base, ROUTED, folder), device="cpu")


def test_random_mixed_batches_match_single_rows(bank):
    assert mixed_rows_differ(bank, ROUTED, rounds=600) <= TOLERANCE


@pytest.mark.parametrize("base", ["roberta", "deberta-v2", "modernbert", "llama", "gpt2"])
def test_mixed_batches_on_other_architectures(tmp_path, base):
    methods = [name for name in ROUTED if not refusal(name, base, None)]
    store = make_store(enlarge_weights(build(base, tmp_path)), methods, tmp_path)
    loaded = peftlab.load(*methods, store=store, device="cpu")
    assert all(map(loaded.is_routed, methods))
    assert mixed_rows_differ(loaded, methods, rounds=80) <= TOLERANCE


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_mixed_batches_on_quantized_base(tmp_path, quantization):
    methods = [name for name in ("lora", "prefix", "pfeiffer", "head") if not refusal(name, "bert", quantization)]
    base = build("bert", tmp_path)
    store = make_store(base, methods, tmp_path)
    loaded = peftlab.load(*methods, store=store, device="cpu", quantization=quantization)
    bare = peftlab.load("head", store=store, device="cpu", quantization=quantization)
    noise = mixed_rows_differ(bare, ["head"], rounds=5)  # 8-bit layers round a row by its neighbours
    assert mixed_rows_differ(loaded, methods, rounds=5) <= max(TOLERANCE, 20 * noise)


def test_concurrent_threads(bank):
    with ThreadPoolExecutor(32) as pool:
        jobs = [pool.submit(mixed_rows_differ, bank, ROUTED, rounds=2, seed=seed) for seed in range(32)]
        assert max(job.result() for job in jobs) <= TOLERANCE


def test_batch_size_equal_to_length_or_hidden_size(bank):
    feature = first_feature(bank, "lora", TEXTS[0])
    width = bank.model("lora").config.hidden_size
    for count in (len(feature), width):
        names = [ROUTED[i % len(ROUTED)] for i in range(count)]
        mixed = predict_each(bank, [(name, first_feature(bank, name, TEXTS[0])) for name in names])
        for name, row in zip(names, mixed, strict=True):
            alone = predict_each(bank, [(name, first_feature(bank, name, TEXTS[0]))])[0]
            torch.testing.assert_close(row, alone, rtol=0, atol=TOLERANCE)


def test_single_forward_pass_for_all_adapters(bank):
    passes = []
    hook = bank.base.router.tree.embeddings.word_embeddings.register_forward_hook(lambda *_: passes.append(1))
    try:
        predict_each(bank, [(name, first_feature(bank, name, text)) for name in ROUTED for text in TEXTS[:2]])
    finally:
        hook.remove()
    assert passes == [1]


def test_predictions_have_row_order(bank):
    names = ["ia3", "lora", "lora", "ia3"]
    rows = [input_row(bank, name, text) for name, text in zip(names, TEXTS, strict=True)]
    answers = bank.predict(rows, adapters=names)
    assert [answer.adapter for answer in answers] == names
    for name, row, answer in zip(names, rows, answers, strict=True):
        [alone] = bank.predict([row], adapters=name)
        assert type(alone.prediction) is type(answer.prediction)


def test_virtual_tokens_use_separate_forward_passes(tmp_path):
    methods = ("lora", "prompt", "p-tuning", "prefix")
    store = make_store(enlarge_weights(build("bert", tmp_path)), methods, tmp_path)
    loaded = peftlab.load(*methods, store=store, device="cpu")
    assert [name for name in methods if loaded.is_routed(name)] == ["lora", "prefix"]
    assert mixed_rows_differ(loaded, methods, rounds=10) <= TOLERANCE


def test_error_resets_routing(bank, monkeypatch):
    features = [(name, first_feature(bank, name, TEXTS[0])) for name in ("lora", "prefix")]
    expected = predict_each(bank, features)
    with monkeypatch.context() as broken:
        broken.setattr(routing, "_join_base_parts", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict_each(bank, features)
    assert all(map(torch.equal, predict_each(bank, features), expected))
