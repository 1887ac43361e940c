"""A finished run is not lost: no plot or card costs the adapter, and publishing is repeated from the checkpoint."""

import json

import pytest
from click.testing import CliRunner

from peftlab.cli import cli
from peftlab.errors import IntegrityError
from peftlab.store import Store
from peftlab.tasks import Confusion
from peftlab.tuning import tune
from peftlab.tuning.report.confusion_matrix import draw_confusion
from peftlab.tuning.report.model_card import _table
from tests.conftest import recipe_in
from tests.runs import Losses

LABELS = {
    "money": ["$", "$$", "$50_000_ to $75_000"],
    "math": [r"\frac{1}{2", "x^2_{3", "$x_$"],
    "markup": ["[/red]", "{x}", "a|b"],
    "lines": ["a\nb", "tab\there", "\x00\x07"],
    "long": ["x" * 400, "y" * 41, "z"],
    "scripts": ["😀", "中文", "ไทย"],
    "percent": ["%", "%s", "100 %"],
}


@pytest.mark.usefixtures("with_plots")
@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize("kind", LABELS)
def test_any_label_is_drawn(tmp_path, kind):
    counts = [[2 if i == j else 0 for j in range(3)] for i in range(3)]
    draw_confusion(Confusion(LABELS[kind], counts), LABELS[kind][0], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 3000


def test_label_stays_in_its_cell_of_the_card():
    assert _table("", {"a|b": {"f1": 0.5}, "c\nd": {"f1": 1.0}}).splitlines()[2:] == [
        "| a\\|b | 0.500 |",
        "| c d | 1.000 |",
    ]


def classes(folder, base, labels):
    texts = ["the train was late .", "it rained .", "nobody came ."]
    rows = [{"text": texts[n % 3], "label": labels[n % 3]} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"train": "rows.jsonl", "validation": "rows.jsonl", "test": None}
    return recipe_in(folder, base, "classes.yaml", task={"type": "text-classification"}, data=data)


@pytest.mark.usefixtures("with_plots")
@pytest.mark.parametrize("kind", ["money", "markup"])
def test_odd_labels_are_tuned_published_and_printed(tmp_path, tiny_base, kind):
    recipe = classes(tmp_path, tiny_base, LABELS[kind])
    result = CliRunner().invoke(cli, ["tune", str(recipe), "--store", str(tmp_path / "store")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    adapter = Store(tmp_path / "store").verify("ner-tiny")
    assert sorted(adapter.task.labels) == sorted(LABELS[kind])
    assert all(label in result.output for label in LABELS[kind])
    assert {"curves.png", "confusion.png", "README.md"} <= {file.name for file in adapter.folder.iterdir()}


@pytest.mark.parametrize(
    ("function", "file"),
    [("draw_confusion", "confusion.png"), ("draw_curves", "curves.png"), ("model_card", "README.md")],
)
def test_plot_or_card_that_fails_is_a_warning(tmp_path, tiny_base, monkeypatch, function, file):
    def fail(*_args, **_kwargs):
        raise RuntimeError("no font\nfor this")

    monkeypatch.setattr(f"peftlab.tuning.report.files.{function}", fail)
    progress = Losses()
    adapter = tune(classes(tmp_path, tiny_base, ["a", "b", "c"]), store=tmp_path / "store", progress=progress).adapter
    assert (
        f"{file} could not be made (RuntimeError: no font). The adapter is published all the same." in progress.warnings
    )
    files = {found.name for found in Store(tmp_path / "store").verify("ner-tiny").folder.iterdir()}
    assert {"curves.png", "confusion.png", "README.md"} - files == {file} - {"README.md"}
    if file != "README.md":
        assert file not in (adapter.folder / "README.md").read_text()


class Steps(Losses):
    """Counts the steps of a run."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_step_end(self, step, loss):
        self.steps.append(step)


@pytest.mark.parametrize(
    ("training", "error"),
    [
        ({}, IntegrityError("its logits differ")),
        ({"num_train_epochs": 9, "early_stopping_patience": 1, "learning_rate": 1e-9}, RuntimeError("bug")),
        ({"optim": "sgd"}, OSError(28, "No space left on device", "weights")),
    ],
)
def test_publishing_is_repeated_from_the_checkpoint(write_recipe, tmp_path, monkeypatch, training, error):
    recipe = write_recipe(training=training)
    straight = tune(recipe, store=tmp_path / "straight")

    def fail(*_args):
        raise error

    first, second = Steps(), Steps()
    with monkeypatch.context() as patch:
        patch.setattr("peftlab.tuning.publish.reload_with_peft", fail)
        with pytest.raises(type(error)) as caught:
            tune(recipe, store=tmp_path / "store", progress=first)
    assert "is kept: continue with the same command and --resume" in caught.value.__notes__[0]
    assert first.steps
    result = tune(recipe, store=tmp_path / "store", resume=True, progress=second)
    assert second.steps == []
    assert result.scores == straight.scores
    weights = "adapter_model.safetensors"
    assert (result.adapter.folder / weights).read_bytes() == (straight.adapter.folder / weights).read_bytes()


def test_command_says_how_to_publish_again(write_recipe, tmp_path, monkeypatch):
    def fail(*_args):
        raise IntegrityError("its logits differ.")

    arguments = ["tune", str(write_recipe()), "--store", str(tmp_path / "store"), "-o", "training.num_train_epochs=1"]
    with monkeypatch.context() as patch:
        patch.setattr("peftlab.tuning.publish.reload_with_peft", fail)
        result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == IntegrityError.exit_code
    assert "--resume" in result.output
    assert CliRunner().invoke(cli, [*arguments, "--resume"]).exit_code == 0
    assert Store(tmp_path / "store").names() == ["ner-tiny"]
