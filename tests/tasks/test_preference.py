"""The task preference: rows, rewards and the base they are held against, TRL's own curve, and replies."""

import json
import math
import os
import signal
import subprocess
import sys
from functools import partial
from importlib import metadata

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import peftlab
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector, RecipeError, TuningInterrupted
from peftlab.recipe import read_recipe
from peftlab.store import Store
from peftlab.tasks.chat.examples import Passage, Reply
from peftlab.tasks.chat.template import CHAT_TEMPLATES
from peftlab.tasks.inputs.features import IGNORED
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.prediction import forward
from peftlab.tasks.preference import PreferenceTask
from peftlab.tasks.task import ModelContext
from peftlab.tuning import ProcessGroup, Progress
from peftlab.tuning.preference.dpo_checks import check_dpo
from peftlab.tuning.preference.reference import attach_references
from peftlab.tuning.training_loop import run_trainer
from tests.conftest import shared_data
from tests.language_models import (
    END,
    build_language_model,
    instruction_recipe,
    save_byte_tokenizer,
    single_turn_chat,
    transformers_generation,
)
from tests.runs import Losses, prepared_run
from tests.task_stores import one_line, run

PAIRS = [
    {"instruction": "Who wrote the letter?", "chosen": "Ada wrote it.", "rejected": "I do not know."},
    {"instruction": "Where did it rain?", "chosen": "It rained in Rome.", "rejected": "In Paris, in Rome, in London."},
    {"instruction": "Say it.", "input": "The train was late.", "chosen": "It was late.", "rejected": "No."},
    {"instruction": "Who came?", "chosen": "Nobody.", "rejected": "Nobody came, but Ada."},
]
LLAMA = CHAT_TEMPLATES["llama-3"].read_text()
METHODS = {
    "lora": {"type": "lora", "r": 4},
    "adalora": {"type": "adalora"},
    "ia3": {"type": "ia3"},
    "vera": {"type": "vera"},
    "pfeiffer": {"type": "bottleneck"},
    "prefix": {"type": "prefix", "num_virtual_tokens": 3},
    "prompt": {"type": "prompt", "num_virtual_tokens": 3},
    "last-layers": {"type": "last-layers", "layers": 1},
    "full": {"type": "full"},
}
STEADY = {"bf16": False, "num_train_epochs": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_language_model(tmp_path_factory.mktemp("llama"))


def pair_recipe(folder, base, rows=PAIRS, **changes):
    """A recipe for `rows`, three times each, and its data."""
    task = {"type": "preference", "template": "llama-3", **changes.pop("task", {})}
    training = {**STEADY, **changes.pop("training", {})}
    recipe = instruction_recipe(folder, base, task=task, training=training, **changes)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 3), encoding="utf8")
    return recipe


def perturb_trainable_parameters(model):
    """Move all that trains, as training does."""
    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)


def conversational(row):
    """A row of PAIRS as TRL's documentation writes it."""
    asked = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
    answers = {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
    return {"prompt": single_turn_chat(asked), **answers}


# --- training, beside plain TRL


def train_with_dpo_trainer(folder, base, start, **settings):
    """What TRL alone makes of PAIRS from the weights `start`: the losses of its steps, and its trainer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template, tokenizer.pad_token = LLAMA, END
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), start.peft_config["default"]
    )
    set_peft_model_state_dict(model, get_peft_model_state_dict(start))
    arguments = {"num_train_epochs": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-2, "seed": 42, **settings}
    config = DPOConfig(
        str(folder), data_seed=42, use_cpu=True, bf16=False, logging_steps=1, report_to="none", save_strategy="no",
        optim="adamw_torch_fused", **arguments,
    )  # fmt: skip
    rows = Dataset.from_list([conversational(row) for row in PAIRS * 3])
    trainer = DPOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer


@pytest.mark.parametrize(
    ("task_options", "settings"),
    [
        ({}, {}),
        ({"loss_type": "ipo", "beta": 0.3}, {}),
        ({"loss_type": "robust", "label_smoothing": 0.2}, {"gradient_accumulation_steps": 2}),
    ],
    ids=["sigmoid", "ipo", "robust, accumulated"],
)
def test_loss_curve_matches_dpo_trainer(base, tmp_path, monkeypatch, task_options, settings):
    monkeypatch.setenv("CI", "1")  # TRL alone would send telemetry
    training = {"train_sampling_strategy": "random", **settings}
    recipe = pair_recipe(tmp_path / "rows", base, task=task_options, training=training)
    start = prepared_run(recipe).model
    expected, trainer = train_with_dpo_trainer(tmp_path / "trl", base, start, **task_options, **settings)
    losses = Losses()
    tuned = peftlab.tune(recipe, store=tmp_path / "store", device="cpu", progress=losses)
    assert losses.losses == pytest.approx(expected, abs=1e-5)
    assert abs(losses.losses[-1] - losses.losses[0]) > 0.02
    pairs = prepared_run(recipe).dataset.features["train"]
    for (chosen, rejected), row in zip(pairs, trainer.train_dataset, strict=True):
        assert chosen.inputs["input_ids"] == row["prompt_ids"] + row["chosen_ids"]
        assert [label for label in rejected.labels if label != IGNORED] == row["rejected_ids"]
    assert tuned.scores["validation"].values["reward_accuracy"] > 0.5


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_reduce_loss(base, tmp_path, name):
    recipe = pair_recipe(tmp_path / "rows", base, training={"num_train_epochs": 6})
    losses, rate = Losses(), {"full": 1e-3, "vera": 0.2, "adalora": 0.2}.get(name, 3e-2)
    changes = {"method": METHODS[name], "training.learning_rate": rate}
    result = peftlab.tune(recipe, overrides=changes, store=tmp_path / "store", device="cpu", progress=losses)
    if name != "adalora":  # whose loss has another part
        assert losses.losses[0] == pytest.approx(math.log(2), abs=0.1)
    assert result.scores["validation"].values["loss"] < 0.67
    told = peftlab.evaluate("chat", tmp_path / "rows" / "rows.jsonl", store=tmp_path / "store", device="cpu")
    assert told.scores.values == pytest.approx(result.scores["validation"].values, abs=1e-4)


# --- the base that rewards are held against


def target_loss(model, feature):
    """What the learnt tokens of a feature cost together, by Transformers' loss."""
    ids, labels = torch.tensor([feature.inputs["input_ids"]]), torch.tensor([feature.labels])
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    nll = functional.cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=IGNORED, reduction="none")
    return float(nll.double().sum())


@pytest.mark.parametrize("name", METHODS)
def test_reference_log_probs_match_base_exact(base, tmp_path, name):
    recipe = pair_recipe(tmp_path / "rows", base, training={"per_device_eval_batch_size": 1})
    made = prepared_run(recipe, {"method": METHODS[name]})
    perturb_trainable_parameters(made.model)
    before = [(parameter, parameter.requires_grad) for parameter in made.model.parameters()]
    told = attach_references(made, made.dataset.features["train"])
    assert [(p, p.requires_grad) for p in made.model.parameters()] == before
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    for pair in told:
        assert [answer.part for answer in pair] == ["chosen", "rejected"]
        for answer in pair:
            (output,) = forward(made.task, plain, made.base.inputs, [answer])
            assert answer.reference == float(output[:, 0].double().sum())
            assert answer.reference == pytest.approx(target_loss(plain, answer), abs=1e-5)
            assert answer.reference != pytest.approx(target_loss(made.model, answer), abs=1e-3)


def test_scores_match_peft(base, tmp_path):
    recipe = pair_recipe(tmp_path / "rows", base, task={"beta": 0.4})
    result = peftlab.tune(recipe, store=tmp_path / "store", device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, result.adapter.folder).eval()
    rewards = []
    for pair in prepared_run(recipe).dataset.features["train"]:
        with model.disable_adapter():
            reference = [target_loss(model, answer) for answer in pair]
        rewards.append(
            [0.4 * (bare - target_loss(model, answer)) for bare, answer in zip(reference, pair, strict=True)]
        )
    margins = torch.tensor([chosen - rejected for chosen, rejected in rewards])
    expected = {
        "reward_accuracy": float((margins > 0).float().mean()),
        "reward_margin": float(margins.mean()),
        "chosen_reward": sum(chosen for chosen, _ in rewards) / len(rewards),
        "rejected_reward": sum(rejected for _, rejected in rewards) / len(rewards),
        "loss": float(-functional.logsigmoid(margins).mean()),
    }
    assert result.scores["validation"].values == pytest.approx(expected, abs=1e-4)
    assert result.adapter.manifest.main_score == "reward_accuracy"


def test_mixed_evaluation_uses_reference_per_adapter(base, tmp_path):
    recipe = pair_recipe(tmp_path / "rows", base)
    alone = {}
    for name, method in (("first", METHODS["lora"]), ("second", METHODS["ia3"])):
        changes = {"name": name, "method": method, "training.learning_rate": 3e-2}
        alone[name] = peftlab.tune(recipe, overrides=changes, store=tmp_path / "store").scores["validation"].values
    lines = [json.dumps({"by": name, **row}) for row in PAIRS * 3 for name in alone]
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines))
    mixed = peftlab.evaluate_mixed(tmp_path / "mixed.jsonl", by="by", store=tmp_path / "store", device="cpu")
    for name, values in alone.items():
        assert mixed.by_adapter[name].scores.values == pytest.approx(values, abs=1e-4)
    assert alone["first"] != pytest.approx(alone["second"], abs=1e-2)


# --- what is published


def test_reply_matches_peft(base, tmp_path):
    recipe = pair_recipe(tmp_path / "rows", base, training={"learning_rate": 5e-2})
    adapter = peftlab.tune(recipe, store=tmp_path / "store", device="cpu").adapter
    bank = peftlab.load("chat", store=tmp_path / "store", device="cpu")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ends = tokenizer.convert_tokens_to_ids([END, "<|eot_id|>"])
    writing = partial(transformers_generation, tokenizer=tokenizer, template=LLAMA, eos_token_id=ends)
    bare = [writing(model, chat=single_turn_chat(row["instruction"])) for row in PAIRS]
    model = PeftModel.from_pretrained(model, adapter.folder).eval()
    replies = []
    for row in PAIRS:
        told = bank.predict(row["instruction"])[0].prediction
        assert isinstance(told, Reply)
        assert told.reply == writing(model, chat=single_turn_chat(row["instruction"]))
        assert told.reply == "".join(bank.reply(single_turn_chat(row["instruction"]))).strip()
        replies.append(told.reply)
    assert replies != bare
    assert "".join(bank.reply(single_turn_chat(PAIRS[0]["instruction"]), base_only=True)).strip() == bare[0]


class Stopping(Progress):
    """Ctrl-C at a step."""

    def __init__(self, at):
        self.at = at

    def on_step_end(self, step, loss):
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def test_resume_matches_full_run(base, tmp_path):
    recipe = pair_recipe(tmp_path / "rows", base)
    whole = peftlab.tune(recipe, store=tmp_path / "whole", device="cpu").adapter
    with pytest.raises(TuningInterrupted):
        peftlab.tune(recipe, store=tmp_path / "parts", device="cpu", progress=Stopping(3))
    resumed = peftlab.tune(recipe, store=tmp_path / "parts", device="cpu", resume=True).adapter
    weights = "adapter_model.safetensors"
    assert (resumed.folder / weights).read_bytes() == (whole.folder / weights).read_bytes()
    assert resumed.manifest.scores == whole.manifest.scores


def test_two_processes_match_single_process(base, tmp_path):
    recipe = pair_recipe(tmp_path / "rows", base, training={"train_sampling_strategy": "random"})
    shared = ["tune", recipe, "--device", "cpu"]
    two = [*shared, "--store", tmp_path / "two", "--launch", "torchrun --nproc-per-node 2"]
    calm = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "peftlab", *map(str, two)]
    told = subprocess.run(command, capture_output=True, text=True, env=calm, timeout=120)
    assert told.returncode == 0, told.stdout + told.stderr
    changes = {"training.gradient_accumulation_steps": 2}
    one = peftlab.tune(recipe, overrides=changes, store=tmp_path / "one", device="cpu")
    scores = Store(tmp_path / "two").resolve("chat").manifest.scores["validation"].values
    assert {name: scores[name] for name in one.scores["validation"].values} == pytest.approx(
        one.scores["validation"].values, abs=1e-3
    )


def test_token_batches_require_single_process(base, tmp_path):
    recipe = read_recipe(pair_recipe(tmp_path / "rows", base))
    errors = ErrorCollector()
    check_dpo(recipe, ProcessGroup(world_size=2), errors)
    (told,) = errors.issues
    assert told.key == "training.train_sampling_strategy"
    assert "TRL needs equal batch sizes in all processes" in told.message


@pytest.mark.parametrize(
    "changes",
    [
        {"base.quantization": "8bit"},
        {"base.quantization": "4bit"},
        {"training.bf16": True},
        {"training.gradient_checkpointing": True},
        {"method": {"type": "lora", "lora_dropout": 0.1, "loraplus_lr_ratio": 4.0}},
    ],
    ids=str,
)
def test_precision_and_training_options(tmp_path, changes):
    wide = build_language_model(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    recipe = pair_recipe(tmp_path / "rows", wide, training={"num_train_epochs": 5})
    result = peftlab.tune(recipe, overrides=changes, store=tmp_path / "store", device="cpu")
    assert result.scores["validation"].values["reward_accuracy"] == 1.0
    dtypes = {tensor.dtype for tensor in load_file(result.adapter.folder / "adapter_model.safetensors").values()}
    assert dtypes == {torch.float32}


def test_reward_accuracy_after_training_on_real_data(tmp_path):
    """The demo preferences on stories260K; of its tokens a word takes several, so most answers are cut, and told so."""
    stories, rows = shared_data("stories260K"), shared_data("inst_demos", "dpo_en_demo.json")
    changes = {"data.train": str(rows), "data.validation": 0.01, "data.max_length": 192, "data.max_lost": 1.0}
    changes |= {"task.template": "plain", "method": {"type": "lora", "r": 16}, "training.learning_rate": 2e-3}
    changes |= {"training.num_train_epochs": 3, "training.per_device_train_batch_size": 8}
    made = prepared_run(pair_recipe(tmp_path / "rows", stories), changes)
    told = made.dataset.ledgers["train"]
    assert told.used > 75
    assert told.read == told.used + told.dropped["its answers do not differ within its first tokens"]
    log = run_trainer(made, tmp_path, progress=Progress())
    shares = [(entry["epoch"], entry["rewards/accuracies"]) for entry in log if "rewards/accuracies" in entry]
    first, last = ([share for epoch, share in shares if end - 1 < epoch <= end] for end in (1, 3))
    assert sum(last) / len(last) > 0.9 > sum(first) / len(first)
    plain = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()
    pair = next(pair for pair in made.dataset.features["train"] if pair)
    (told,) = attach_references(made, [pair])
    assert [answer.reference for answer in told] == pytest.approx([target_loss(plain, one) for one in pair], abs=1e-3)


# --- rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture
def task(tokenizer):
    made = PreferenceTask(template="chatml")
    made.bind_to_base(ModelContext(TextInputs(tokenizer), None, 256), {}, None)
    return made


def read(task, **fields):
    return task.read(Row(fields, "rows.jsonl:1"))


def make_messages(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


ASKED = make_messages("Who?", "Ada.", "Why?")
GOOD, BAD = make_messages("It rained.", first="assistant"), make_messages("No.", first="assistant")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
        {"prompt": json.dumps(ASKED), "chosen": json.dumps(GOOD), "rejected": json.dumps(BAD)},
        {"messages": ASKED, "chosen": GOOD[0], "rejected": "No."},
        {"chosen": [*ASKED, *GOOD], "rejected": [*ASKED, *BAD]},
        {"prompt": "Why?", "chosen": [*ASKED, *GOOD], "rejected": [*ASKED, *BAD]},
        {
            "conversations": [
                {"from": "human", "value": "Who?"},
                {"from": "gpt", "value": "Ada."},
                {"from": "human", "value": "Why?"},
            ],
            "chosen": {"from": "gpt", "value": "It rained."},
            "rejected": {"from": "gpt", "value": "No."},
        },
    ],
    ids=["TRL", "cells", "messages", "whole", "whole with prompt", "ShareGPT"],
)
def test_labels_are_same_for_all_chat_formats(task, tokenizer, fields):
    pair = read(task, **fields)
    assert (pair.text, task.count(pair), pair.chosen.messages[:3]) == ("Why?", 2, tuple(ASKED))
    chosen, rejected = task.encode([pair], TextInputs(tokenizer), 256, training=True)[0]
    for feature, answer in ((chosen, "It rained."), (rejected, "No.")):
        assert tokenizer.decode([label for label in feature.labels if label != IGNORED]) == f"{answer}<|im_end|>"
        assert "Ada.<|im_end|>" in tokenizer.decode(feature.inputs["input_ids"])


def test_multiple_answers_are_all_targets(task, tokenizer):
    long = make_messages("It rained.", "Where?", "In Rome.", first="assistant")
    pair = read(task, prompt=single_turn_chat("Why?"), chosen=long, rejected=BAD)
    chosen, _ = task.encode([pair], TextInputs(tokenizer), 256, training=True)[0]
    learnt = tokenizer.decode([label for label in chosen.labels if label != IGNORED])
    assert learnt == "It rained.<|im_end|>In Rome.<|im_end|>"
    assert task.count(pair) == 3


def test_template_is_used_for_instructions_only(task, tokenizer):
    plain = read(task, prompt="Ada ", chosen="wrote.", rejected="left.")
    assert plain.chosen == Passage("Ada ", completion="wrote.")
    chosen, _ = task.encode([plain], TextInputs(tokenizer), 256, training=True)[0]
    assert tokenizer.decode(chosen.inputs["input_ids"]) == "<s>Ada wrote." + END
    asked = read(task, instruction="Say it.", input="Ada left.", chosen="Yes.", rejected="No.")
    assert asked.rejected.messages[0]["content"] == "Say it.\n\nAda left."
    with_system = PreferenceTask(system="Be brief.")
    assert read(with_system, **PAIRS[0]).chosen.messages[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "Who?", "chosen": "Ada."}, "expected columns prompt and chosen and rejected, or instruction and"),
        ({"chosen": "Ada.", "rejected": "No."}, "expected a prompt before the answers, as prompt, instruction or"),
        ({"prompt": "Who?", "chosen": " ", "rejected": "No."}, "expected chosen to hold some text"),
        ({"prompt": ASKED, "chosen": 3, "rejected": BAD}, "expected chosen to be a string, found 3"),
        (
            {"prompt": ASKED, "chosen": single_turn_chat("x"), "rejected": BAD},
            "expected chosen to begin and end with a message",
        ),
        (
            {"prompt": ASKED[:2], "chosen": GOOD, "rejected": BAD},
            "expected the last message of the prompt not to have",
        ),
        (
            {"chosen": ASKED, "rejected": [*ASKED, *BAD]},
            "expected chosen to begin and end with a message of the assist",
        ),
        (
            {"prompt": "Where?", "chosen": [*ASKED, *GOOD], "rejected": [*ASKED, *BAD]},
            "or full chats that begin with the prompt",
        ),
        (
            {"conversations": [{"from": "function", "value": "x"}], "chosen": "a", "rejected": "b"},
            "found a message of function: peftlab does not train tool calls",
        ),
        (
            {"messages": ASKED, "chosen": {"from": [1], "value": "a"}, "rejected": "b"},
            "expected each message to have a role",
        ),
    ],
)
def test_invalid_row_raises_row_error(task, fields, message):
    with pytest.raises(RowError, match=message):
        read(task, **fields)


def test_truncated_and_equal_answers_are_lost(task, tokenizer):
    pair = read(task, prompt=ASKED, chosen="It rained in Rome. " * 4, rejected="No.")
    whole, short = task.encode([pair], TextInputs(tokenizer), 256, training=True)[0]
    truncated = task.encode([pair], TextInputs(tokenizer), len(whole) - 3, training=True)[0]
    assert [answer.truncated for answer in truncated] == [True, False]
    assert (task.lost(pair, truncated), task.lost(pair, [whole, short])) == (1, 0)
    assert task.encode([pair], TextInputs(tokenizer), 16, training=True)[0] == []
    assert (
        task.encode(
            [read(task, prompt=ASKED, chosen="No.", rejected="No.")], TextInputs(tokenizer), 256, training=True
        )[0]
        == []
    )
    windows = task.encode([pair], TextInputs(tokenizer), 24, training=False)[0]
    assert {window.part for window in windows} == {"chosen", "rejected"}
    assert sum(map(task.head.loss_terms, windows)) == sum(map(task.head.loss_terms, (whole, short)))


def test_input_row_matches_causal_lm(task):
    assert task.read_input(Row({"instruction": "Who?"}, "row 1")).messages == tuple(single_turn_chat("Who?"))


# --- the recipe and the command line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.loss_type": "sigmod"}, "unknown loss_type 'sigmod'. Did you mean 'sigmoid'?"),
        ({"task.loss_type": "exo_pair"}, "should be above 0 with exo_pair"),
        ({"task.label_smoothing": 0.1}, "should come with one of robust, exo_pair, aot, aot_unpaired"),
        ({"task.beta": 0.0}, "should be greater than 0"),
        ({"task.bta": 0.1}, "Did you mean 'beta'?"),
        ({"method.type": "head"}, "'head' trains only a new head"),
        ({"training.packing": True}, "each text of preference needs its own row"),
        ({"training.distributed": "fsdp"}, "are computed before training, and no process has the full base"),
    ],
    ids=str,
)
def test_invalid_options_raise_recipe_error(base, tmp_path, changes, message):
    recipe = pair_recipe(tmp_path / "rows", base)
    with pytest.raises(RecipeError) as caught:
        peftlab.tune(recipe, overrides=changes, store=tmp_path / "store", device="cpu")
    assert message in one_line(str(caught.value))


@pytest.mark.parametrize("version_found", [None, "0.9.6"])
def test_missing_package_error_includes_install_command(base, tmp_path, monkeypatch, version_found):
    version = metadata.version

    def other(name):
        if name != "trl":
            return version(name)
        if version_found is None:
            raise metadata.PackageNotFoundError(name)
        return version_found

    monkeypatch.setattr(metadata, "version", other)
    recipe = pair_recipe(tmp_path / "rows", base)
    message = (
        "trl 0.9.6 is installed; this needs 1.16"
        if version_found
        else "the package trl, which computes the loss, is not in"
    )
    for command in ("tune", "check"):
        told = run(command, recipe, "--device", "cpu")
        assert told.exit_code == 2
        assert message in one_line(told.output)
        assert "pip install 'peftlab[align]'" in one_line(told.output)


def test_cli_check_tune_evaluate_predict_and_export(base, tmp_path):
    recipe, store = pair_recipe(tmp_path / "rows", base, task={"template": "chatml"}), tmp_path / "store"
    shown = run("check", recipe, "--show-mask", "1", "--device", "cpu")
    assert shown.exit_code == 0, shown.output
    assert "rows.jsonl:1 (chosen)" in shown.output
    assert "<|im_start|>assistant↵\n«I do not know.<|im_end|>»" in shown.output
    told = run("tune", recipe, "--store", store)
    assert told.exit_code == 0, told.output
    assert "validation reward_accuracy" in told.output
    scored = run("evaluate", "chat", "--data", tmp_path / "rows" / "rows.jsonl", "--store", store,
                 "--predictions", tmp_path / "told.jsonl")  # fmt: skip
    assert "reward_margin" in scored.output
    first = json.loads((tmp_path / "told.jsonl").read_text().splitlines()[0])
    assert first.keys() >= {"text", "chosen_reward", "rejected_reward", "right"}
    replied = run("predict", "chat", "Who came?", "--store", store, "--json")
    assert "reply" in json.loads(replied.stdout)
    exported = run("export", "chat", "--to", "vllm", "--output", tmp_path / "vllm", "--store", store)
    assert exported.exit_code == 0, exported.output
