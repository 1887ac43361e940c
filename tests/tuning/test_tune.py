"""`tune()` with a tiny base: published files, errors, interruption and resuming."""

import hashlib
import json
import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from seqeval.metrics import f1_score
from transformers import AutoModelForTokenClassification

import peftlab
from peftlab.data import Ledger
from peftlab.errors import RecipeError, TuningInterrupted
from peftlab.store import Store
from peftlab.tasks import Scores
from peftlab.tuning import Progress, tune


class ProgressRecorder(Progress):
    """Records progress; may send a signal after a given step, or after the first validation."""

    def __init__(self, *, interrupt_at=None):
        self.warnings, self.scores, self.ledgers, self.started, self.steps = [], [], {}, None, []
        self.interrupt_at = interrupt_at

    def on_data_encoded(self, task, ledgers):
        self.ledgers = dict(ledgers)

    def warn(self, message):
        self.warnings.append(message)

    def on_train_begin(self, total_steps, epochs, done_steps):
        self.started = (total_steps, epochs, done_steps)

    def on_step_end(self, step, loss):
        if loss is None:
            self.steps.append(step)
            if step == self.interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)

    def on_epoch_end(self, epoch, scores, *, best):
        self.scores.append((epoch, scores["f1"], best))
        if self.interrupt_at == "validation":
            os.kill(os.getpid(), signal.SIGINT)


def weights(adapter):
    return load_file(adapter.folder / "adapter_model.safetensors")


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_tune_manifest_and_files(write_recipe, tmp_path, tiny_base):
    before = hashlib.sha256((tiny_base / "model.safetensors").read_bytes()).hexdigest()
    progress = ProgressRecorder()
    result = tune(write_recipe(), store=tmp_path / "store", progress=progress)
    assert hashlib.sha256((tiny_base / "model.safetensors").read_bytes()).hexdigest() == before
    manifest = Store(tmp_path / "store").verify("ner-tiny").manifest
    assert manifest.task.labels == ("LOC", "PER")
    assert manifest.scores["test"] == result.scores["test"]
    assert manifest.reload_difference <= 1e-4
    assert manifest.data.ledger["train"].used == 12
    assert manifest.data.ledger["train"].targets == 19
    assert set(manifest.files) == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "recipe.yaml", "curves.png"
    }  # fmt: skip
    assert [epoch for epoch, *_ in progress.scores] == [1, 2]
    assert progress.started == (6, 2, 0)
    assert not (tmp_path / "store" / "ner-tiny" / "run").exists()


def test_scores_match_plain_peft_and_seqeval(tuned_store, tiny_base):
    """The oracle: load the folder with plain PEFT and Transformers, predict the test split, score with seqeval."""
    from transformers import AutoTokenizer

    from peftlab.data.markup import parse_markup
    from peftlab.tasks.labels.tag_schemes import tags_from_spans
    from tests.conftest import SENTENCES

    adapter = Store(tuned_store).resolve("ner-tiny@1")
    names = adapter.manifest.task.head_labels
    model = AutoModelForTokenClassification.from_pretrained(tiny_base, num_labels=len(names))
    model = PeftModel.from_pretrained(model, adapter.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    gold, guess = [], []
    for line in SENTENCES["test"].splitlines():
        text, entities = parse_markup(line)
        words = text.split()
        starts = {text.index(word, sum(map(len, words[:i])) + i): i for i, word in enumerate(words)}
        spans = [
            (starts[e["start"]], starts[e["start"]] + text[e["start"] : e["end"]].count(" ") + 1, e["label"])
            for e in entities
        ]
        encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        logits = model(**encoded).logits[0]
        firsts = [encoded.word_ids().index(i) for i in range(len(words))]
        gold.append(tags_from_spans(spans, len(words)))
        guess.append([names[int(logits[position].argmax())] for position in firsts])
    assert f1_score(gold, guess) == adapter.manifest.scores["test"].values["f1"]


def test_tiny_model_score(tuned_store):
    manifest = Store(tuned_store).resolve("ner-tiny@1").manifest
    assert manifest.scores["validation"].values["f1"] > 0.5


def test_seed_determines_adapter(write_recipe, tmp_path):
    recipe = write_recipe()
    first, second, other = (
        tune(recipe, store=tmp_path / name, overrides={"training.seed": seed})
        for name, seed in (("first", 1), ("second", 1), ("other", 2))
    )
    assert equal(weights(first.adapter), weights(second.adapter))
    assert first.scores == second.scores
    assert not equal(weights(first.adapter), weights(other.adapter))


def test_publish_best_epoch(write_recipe, tmp_path):
    progress = ProgressRecorder()
    changes = {"training.num_train_epochs": 6, "training.learning_rate": 2e-2, "training.early_stopping_patience": None}
    result = tune(write_recipe(), store=tmp_path / "store", overrides=changes, progress=progress)
    best = max(value for _, value, _ in progress.scores)
    assert result.scores["validation"].values["f1"] == best
    marked = [value for _, value, is_best in progress.scores if is_best]
    assert marked == sorted(marked)
    assert marked[-1] == best


class LossRecorder(Progress):
    """Records the losses of steps and of epochs, and which epochs were the best so far."""

    def __init__(self):
        self.losses, self.epoch_losses, self.best = [], [], []

    def on_step_end(self, step, loss):
        if loss is not None:
            self.losses.append(loss)

    def on_epoch_loss(self, loss):
        self.epoch_losses.append(loss)

    def on_epoch_end(self, epoch, scores, *, best):
        self.best.append(best)


@pytest.mark.parametrize(("few_rows", "best", "published"), [(30, [True, True], 2), (0, [True, False], 1)])
def test_epoch_published_among_equal_scores(write_recipe, tmp_path, monkeypatch, few_rows, best, published):
    """With few validation rows the last epoch is published, else the first; the loss is the mean of an epoch."""
    recipe = write_recipe(training={"head_init": "random"})
    read, progress = Scores.from_dict, LossRecorder()
    values = iter([0.5] * 4 + [0.1, 0.2, 0.3, 0.4])  # of two epochs, validation and test, for two runs
    monkeypatch.setattr(Scores, "from_dict", lambda plain: replace(read(plain), values={"f1": next(values)}))
    monkeypatch.setattr("peftlab.tuning.run.FEW_VALIDATION_ROWS", few_rows)
    monkeypatch.setattr("peftlab.tuning.evaluate._score_again", lambda run, split, outputs, before: before)
    equal_scores = tune(recipe, store=tmp_path / "store", progress=progress)
    assert progress.best == best
    assert progress.epoch_losses == pytest.approx([sum(progress.losses[:3]) / 3, sum(progress.losses[3:]) / 3])
    rising_scores = tune(recipe, store=tmp_path / "other")  # its last epoch is published
    assert equal(weights(equal_scores.adapter), weights(rising_scores.adapter)) == (published == 2)


def test_early_stopping(write_recipe, tmp_path):
    progress = ProgressRecorder()
    changes = {
        "training.num_train_epochs": 40,
        "training.learning_rate": 2e-2,
        "training.early_stopping_patience": 2,
    }
    tune(write_recipe(), store=tmp_path / "store", overrides=changes, progress=progress)
    values = [value for _, value, _ in progress.scores]
    assert 3 <= len(values) < 40
    assert max(values[-2:]) <= max(values[:-2])  # the last two epochs were not better
    assert max(values) > 0


def test_early_stopping_with_zero_scores(write_recipe, tmp_path):
    progress = ProgressRecorder()
    changes = {
        "training.num_train_epochs": 5,
        "training.learning_rate": 1e-9,
        "training.early_stopping_patience": 2,
    }
    tune(write_recipe(), store=tmp_path / "store", overrides=changes, progress=progress)
    assert [value for _, value, _ in progress.scores] == [0.0] * 5


def test_saved_recipe_matches_run(write_recipe, tmp_path):
    first = tune(write_recipe(), store=tmp_path / "store", overrides={"training.learning_rate": 3e-3})
    again = tune(first.adapter.folder / "recipe.yaml", store=tmp_path / "store")
    assert again.adapter.version == 2
    assert equal(weights(first.adapter), weights(again.adapter))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"base.quantization": "8bit", "training.optim": "lion_8bit"},
        {"base.quantization": "4bit", "training.gradient_checkpointing": True},
    ],
    ids=["fp32", "8bit", "4bit"],
)
def test_resume_after_interrupt_matches_full_run(write_recipe, tmp_path, changes):
    recipe, handler = write_recipe(), signal.getsignal(signal.SIGINT)
    straight = tune(recipe, store=tmp_path / "straight", overrides=changes)
    with pytest.raises(TuningInterrupted, match=r"after step 4 of 6; nothing was published.*--resume"):
        tune(recipe, store=tmp_path / "store", overrides=changes, progress=ProgressRecorder(interrupt_at=4))
    assert Store(tmp_path / "store").names() == []
    assert signal.getsignal(signal.SIGINT) is handler
    progress = ProgressRecorder()
    resumed = tune(recipe, store=tmp_path / "store", overrides=changes, resume=True, progress=progress)
    assert progress.started == (6, 2, 4)
    assert progress.steps == [5, 6]
    assert equal(weights(straight.adapter), weights(resumed.adapter))
    assert resumed.scores == straight.scores


def test_interrupt_during_validation_saves_epoch(write_recipe, tmp_path):
    recipe = write_recipe()
    with pytest.raises(TuningInterrupted, match=r"after step 3 of 6; nothing was published\. .*checkpoint-3 is kept"):
        tune(recipe, store=tmp_path / "store", progress=ProgressRecorder(interrupt_at="validation"))
    progress = ProgressRecorder()
    tune(recipe, store=tmp_path / "store", resume=True, progress=progress)
    assert progress.steps == [4, 5, 6]


def test_second_interrupt_immediate_stop(write_recipe, tmp_path):
    class InterruptTwice(ProgressRecorder):
        def on_step_end(self, step, loss):
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TuningInterrupted, match="checkpoint-3 is kept"):
        tune(write_recipe(), store=tmp_path / "store", progress=InterruptTwice())


def test_resume_with_changed_recipe_raises(write_recipe, tmp_path):
    recipe = write_recipe()
    with pytest.raises(TuningInterrupted):
        tune(recipe, store=tmp_path / "store", progress=ProgressRecorder(interrupt_at=2))
    with pytest.raises(RecipeError, match="cannot resume: the recipe is not that of the interrupted run"):
        tune(recipe, store=tmp_path / "store", resume=True, overrides={"training.learning_rate": 1e-4})


def test_resume_without_checkpoint_warning(write_recipe, tmp_path):
    progress = ProgressRecorder()
    tune(write_recipe(), store=tmp_path / "store", resume=True, progress=progress)
    assert "training starts from the beginning" in " ".join(progress.warnings)
    assert progress.started[2] == 0


def test_tune_in_thread(write_recipe, tmp_path):
    thread = threading.Thread(target=tune, args=(write_recipe(),), kwargs={"store": tmp_path / "store"})
    thread.start()
    thread.join()
    assert Store(tmp_path / "store").names() == ["ner-tiny"]


def test_large_truncation_loss_raises_recipe_error(write_recipe, tmp_path):
    recipe = write_recipe(data={"max_length": 8, "max_lost": 0.2})
    with pytest.raises(RecipeError, match=r"train loses \d+%: 0 of 12 rows dropped, \d+ of 19 entities lost"):
        tune(recipe, store=tmp_path / "store")
    progress = ProgressRecorder()
    tune(recipe, store=tmp_path / "store", overrides={"data.max_lost": 0.3}, progress=progress)
    ledger = progress.ledgers["train"]
    assert ledger.truncated > 0
    assert 0.2 < ledger.lost_fraction <= 0.3
    assert "train loses" in " ".join(progress.warnings)
    assert progress.ledgers["test"].lost_fraction == 0


def test_small_truncation_loss_warning(write_recipe, tmp_path):
    progress = ProgressRecorder()
    tune(write_recipe(data={"max_length": 9, "max_lost": 0.99}), store=tmp_path / "store", progress=progress)
    assert progress.ledgers["train"].lost_fraction > 0.05
    assert len([output for output in progress.warnings if " loses " in output]) == 1


def test_max_length_over_base_limit_raises_recipe_error(write_recipe, tmp_path):
    with pytest.raises(RecipeError, match="512 tokens are more than this base takes"):
        tune(write_recipe(data={"max_length": 512}), store=tmp_path / "store")


def test_validation_split_from_train_without_test(write_recipe, tmp_path):
    progress = ProgressRecorder()
    result = tune(
        write_recipe(),
        store=tmp_path / "store",
        overrides={"data.validation": 0.25, "data.test": None},
        progress=progress,
    )
    assert {name: ledger.read for name, ledger in progress.ledgers.items()} == {"train": 9, "validation": 3}
    assert list(result.scores) == ["validation"]


def test_lost_share_is_maximum_of_rows_and_targets():
    assert Ledger(read=10, dropped={"no words in it": 2}, targets=10, num_lost_targets=1).lost_fraction == 0.2
    assert Ledger(read=10, targets=4, num_lost_targets=1).lost_fraction == 0.25
    assert Ledger().lost_fraction == 0


def test_model_card_content(tuned_store):
    adapter = Store(tuned_store).resolve("ner-tiny@1")
    card = (adapter.folder / "README.md").read_text(encoding="utf8")
    assert f"| test | {adapter.manifest.scores['test'].values['precision']:.3f} |" in card
    assert "PeftModel.from_pretrained" in card
    assert "num_train_epochs: 20" in card
    config = json.loads((adapter.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == adapter.manifest.base.model


def test_public_names_are_tuning_functions():
    from peftlab.runtime import load

    assert peftlab.tune is tune
    assert peftlab.load is load
