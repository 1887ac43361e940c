"""Every architecture × every kind of task: a bank gives the outputs of plain PEFT, or tuning is refused in words."""

import pytest
import torch
import transformers
from peft import PeftModel

import peftlab
from peftlab.errors import PeftlabError, RecipeError
from peftlab.tuning import Progress
from tests.architecture_sweep import ARCHITECTURES, TASKS, build_architecture, sweep_recipe
from tests.serving import build_feature, predict_each

TOLERANCE = 1e-5
COLUMNS = ("text", "text_pair", "tokens", "question", "context")
IN_SHORT = ("longformer", "t5", "gpt2", "fnet")


class TrainingStarted(Progress):
    """Records whether training has begun."""

    begun = False

    def on_train_begin(self, total_steps, epochs, completed_steps):
        self.begun = True


def marked(name):
    return pytest.param(name, marks=() if name in IN_SHORT else pytest.mark.whole_matrix)


@pytest.mark.parametrize("name", [marked(name) for name in ARCHITECTURES])
def test_bank_gives_outputs_of_plain_peft_or_architecture_is_refused(name, tmp_path, record_property):
    base = build_architecture(name, tmp_path / "base")
    outcomes = {task: tuned(tmp_path, base, task) for task in TASKS}
    record_property("architecture", (name, outcomes))
    published = [task.lower() for task, outcome in outcomes.items() if outcome == "ok"]
    if published:
        assert_same_outputs(peftlab.load(*published, store=tmp_path / "store", device="cpu"), base, published)


def tuned(folder, base, task):
    """Tune an adapter; return ok, or why it is refused before training."""
    progress = TrainingStarted()
    try:
        peftlab.tune(
            sweep_recipe(folder / task, base, task),
            store=folder / "store",
            device="cpu",
            publish_anyway=True,
            progress=progress,
        )
    except PeftlabError as error:
        if progress.begun:
            raise
        message = error.errors[0].message if isinstance(error, RecipeError) else str(error)
        return message.replace(f"'{base}' ", "").replace(f"'{base}'", "it")
    return "ok"


def assert_same_outputs(bank, base, names):
    """Alone, in a batch of one adapter, and in a batch of all adapters."""
    rows = {name: features_of(bank, name) for name in names}
    alone = {name: [predict_each(bank, [(name, row)])[0] for row in rows[name]] for name in names}
    for name in names:
        model = plain_peft(bank, base, name)
        assert_close(alone[name], [outputs_of(bank, name, model, [row])[0] for row in rows[name]])
        assert_close(predict_each(bank, [(name, row) for row in rows[name]]), outputs_of(bank, name, model, rows[name]))
    places = [(name, i) for i in range(3) for name in names]  # every task has three rows
    mixed = predict_each(bank, [(name, rows[name][i]) for name, i in places])
    assert_close(mixed, [alone[name][i] for name, i in places])


def features_of(bank, name):
    """The rows of the task, without labels."""
    task = next(task for task in TASKS if task.lower() == name)
    rows = [{key: row[key] for key in COLUMNS if key in row} for row in TASKS[task][1][:5]]
    return [build_feature(bank, name, row)[0] for row in rows]


def plain_peft(bank, base, name):
    """The adapter as anyone loads it, without peftlab."""
    head = bank.task(name).head
    auto_class = getattr(transformers, head.auto_class)
    model = auto_class.from_pretrained(base, num_labels=len(head.labels))
    model.config.pad_token_id = bank.base.inputs.processor.pad_token_id
    return PeftModel.from_pretrained(model, bank.adapter(name).folder).eval()


@torch.inference_mode()
def outputs_of(bank, name, model, features):
    head, inputs = bank.task(name).head, bank.base.inputs_for(bank.task(name))
    batch = inputs.pad(features)
    return head.compute_outputs(model(**batch), None, inputs.mask(batch))


def assert_close(outputs, expected):
    for one, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)
