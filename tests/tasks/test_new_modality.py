"""A task and a modality that another installed package brings: images for a Vision Transformer, without token ids."""

import json
import os
import random
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageClassification, ViTConfig, ViTModel

import peftlab
from peftlab.errors import IntegrityError, RecipeError
from peftlab.recipe import read_recipe
from peftlab.tasks import TASKS
from tests.plugins import install_plugin
from tests.recipes import write_merged
from tests.runs import prepared_run

SOURCE = '''
"""Image classification: pixels as rows, one label per image."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import torch

from peftlab.data.rows import RowError
from peftlab.recipe.tasks import TaskFields
from peftlab.tasks.heads import ClassificationHead
from peftlab.tasks.inputs.features import Feature
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.labels.label_set import fit_labels_from_examples
from peftlab.tasks.record import TaskRecord
from peftlab.tasks.task import Example, Metric, Prediction, Scores, Targets, Task


class ImageClassification(TaskFields):
    """One label for an image."""

    type: Literal["image-classification"]
    labels: list[str] | None = None
    """Class names; null takes those found in the training rows."""


class ImageInputs(Inputs):
    """Images that all have the size that the model takes."""

    def __init__(self, size, channels):
        self.size, self.channels = size, channels

    @classmethod
    def load(cls, files, *, trust_remote_code=False):
        return cls(files.config["image_size"], files.config["num_channels"])

    @property
    def processor(self):
        return None

    @property
    def fingerprint(self):
        return hashlib.sha256(json.dumps([self.size, self.channels]).encode()).hexdigest()

    def pad(self, features):
        return {"pixel_values": torch.tensor([feature.inputs["pixel_values"] for feature in features])}

    def probe(self, model, rows, length):
        return {"pixel_values": torch.ones(rows, self.channels, self.size, self.size, device=model.device)}


class ImageHead(ClassificationHead):
    auto_class = "AutoModelForImageClassification"
    peft_task_type = None


@dataclass(frozen=True)
class Image(Example):
    pixels: tuple = ()
    label: str | None = None


@dataclass(frozen=True)
class ImageClass(Prediction):
    label: str
    logits: tuple

    def as_dict(self) -> dict[str, Any]:
        return {"label": self.label}


class ImageClassificationTask(Task):
    """Rows have `pixels`, numbers (channels, height, width), and `label`."""

    type = "image-classification"
    inputs_class = ImageInputs

    def __init__(self, *, labels=None):
        super().__init__(labels=labels)
        self.metric = Metric("accuracy", self.score)
        self.targets = Targets("labels", lambda image: 1, labels_of=lambda image: (image.label,))

    @property
    def head(self):
        return ImageHead(self.labels)

    def read(self, row):
        if "label" not in row.fields:
            raise RowError("expected column label")
        return Image("", row.where, pixels=row.fields["pixels"], label=row.fields["label"])

    def read_input(self, row):
        if "pixels" not in row.fields:
            raise RowError("expected column pixels")
        return Image("", row.where, pixels=row.fields["pixels"])

    def fit_labels(self, examples, errors):
        self.labels = fit_labels_from_examples(self.labels, examples, self.targets.labels_of, errors)

    def encode(self, examples, inputs, max_length, *, training):
        labels = [None if image.label is None else self.labels.index(image.label) for image in examples]
        return [[Feature({"pixel_values": x.pixels}, label)] for x, label in zip(examples, labels, strict=True)]

    def decode(self, example, features, logits):
        return ImageClass(example.text, self.labels[int(logits[0].argmax())], tuple(logits[0].tolist()))

    def score(self, examples, predictions):
        right = sum(x.label == y.label for x, y in zip(examples, predictions, strict=True))
        return Scores({"accuracy": right / max(1, len(examples))})


record = TaskRecord(
    ImageClassification,
    ImageClassificationTask,
    pipeline_tag="image-classification",
    example=lambda task: "--file images.jsonl --format jsonl",
    input_columns=lambda task: ("pixels",),
)
'''


def image(rng, label):
    """An image of one channel that is brighter at the top, or at the bottom."""
    rows = [rng.uniform(0.5, 1.0) if (row < 4) == (label == "top") else rng.uniform(0, 0.3) for row in range(8)]
    return [[[value + rng.uniform(-0.1, 0.1) for _ in range(8)] for value in rows]]


def write_images(file, count, seed):
    rng = random.Random(seed)
    labels = [rng.choice(["top", "bottom"]) for _ in range(count)]
    rows = [{"pixels": image(rng, label), "label": label} for label in labels]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    points = {"peftlab.tasks": {"image-classification": "record"}}
    folder = install_plugin(tmp_path / "site", "image_tasks", SOURCE, points)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("image_tasks", None)


@pytest.fixture
def vit(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1)).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def recipe(plugin, vit, tmp_path):
    write_images(tmp_path / "train.jsonl", 40, seed=1)
    write_images(tmp_path / "validation.jsonl", 16, seed=2)
    values = {
        "name": "images",
        "base": {"model": str(vit)},
        "task": {"type": "image-classification"},
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "method": {"type": "lora", "r": 4, "target_modules": "all-linear"},
        "training": {"learning_rate": 1e-2, "num_train_epochs": 6, "per_device_train_batch_size": 8},
    }
    return write_merged(tmp_path / "recipe.yaml", values, {})


@pytest.fixture
def store(recipe, tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        overrides = {"name": name, "training.seed": seed}
        result = peftlab.tune(recipe, overrides=overrides, store=tmp_path / "store", device="cpu")
        assert result.scores["validation"].values["accuracy"] > 0.9
    return tmp_path / "store"


def test_image_adapters_are_tuned_mixed_and_served(store, vit, tmp_path):
    rows = write_images(tmp_path / "new.jsonl", 8, seed=3)
    bank = peftlab.load("one", "two", store=store, device="cpu")
    assert bank.is_routed("one")
    assert bank.is_routed("two")
    names = ["one", "two"] * 4
    mixed = bank.predict([{"pixels": row["pixels"]} for row in rows], adapters=names)
    alone = [bank.predict({"pixels": row["pixels"]}, adapters=name)[0] for row, name in zip(rows, names, strict=True)]
    assert [answer.prediction.label for answer in mixed] == [row["label"] for row in rows]
    pixels = torch.tensor([row["pixels"] for row in rows])
    for name in ("one", "two"):
        mine = [i for i, other in enumerate(names) if other == name]
        base = AutoModelForImageClassification.from_pretrained(vit, num_labels=2)
        plain = PeftModel.from_pretrained(base, store / name / "1").eval()
        with torch.no_grad():
            expected = plain(pixel_values=pixels[mine]).logits
        for answers in (mixed, alone):
            found = torch.tensor([answers[i].prediction.logits for i in mine])
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_image_adapters_are_evaluated_and_verified(store, tmp_path):
    write_images(tmp_path / "new.jsonl", 16, seed=3)
    result = peftlab.evaluate("one", tmp_path / "new.jsonl", store=store, device="cpu")
    assert result.scores.values["accuracy"] > 0.9
    card = (store / "one" / "1" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    weights = store / "two" / "1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError):
        peftlab.load("two", store=store, device="cpu")


def test_new_process_predicts_with_plugin_task(plugin, store, tmp_path):
    write_images(tmp_path / "new.jsonl", 3, seed=3)
    paths = os.pathsep.join([str(plugin), *filter(None, sys.path)])
    command = [sys.executable, "-m", "peftlab", "predict", "one", "--file", str(tmp_path / "new.jsonl")]
    command += ["--format", "jsonl", "--store", str(store), "--device", "cpu"]
    for options in ([], ["--json"]):
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("label") == 3


def test_features_of_images_are_cached(recipe):
    first, second = (prepared_run(recipe).dataset.features["train"] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"task.type": "image-clasification"}, "Did you mean 'image-classification'?"),
        ({"task.lables": ["a"]}, "task.lables: unknown key. Did you mean 'labels'?"),
        ({"training.packing": True}, "each text of image-classification needs its own row"),
    ],
)
def test_wrong_plugin_task_section_raises_recipe_error(recipe, overrides, message):
    with pytest.raises(RecipeError) as error:
        read_recipe(recipe, overrides)
    assert message in str(error.value)


def test_registry_lists_plugin_task_without_importing_it(plugin):
    assert "image-classification" in list(TASKS)
    assert "image_tasks" not in sys.modules
    assert TASKS["image-classification"].section.__name__ == "ImageClassification"
