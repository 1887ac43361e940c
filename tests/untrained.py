"""Published adapters without training: PEFT's own fresh ones with random numbers, or copies of others with changes."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

from peftlab.store import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Store
from peftlab.store.manifest import canonical_text
from peftlab.tuning.publish import run_manifest
from tests.runs import prepared_run

ANSWERS = [f"answer {number}" for number in range(40)]


class UncheckedManifest:
    """Publishes any values as a manifest, for `Store.publish`."""

    def __init__(self, values):
        self.values = values

    def finalize(self, name, version, files):
        return UncheckedManifest({**self.values, "name": name, "version": version, "files": files})

    def to_json(self):
        return canonical_text(self.values)


def perturbed(tensors, seed, by=0.1):
    """All numbers a little off, but whole ones, which are places."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: tensor + by * torch.randn(tensor.shape, generator=random) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def publish_untrained(store, recipe, overrides, *, seed=1):
    """An adapter as the recipe has it before training, stirred, since most begin by doing nothing."""
    run = prepared_run(recipe, overrides)

    def write(folder):
        config = run.model.peft_config["default"]
        config.base_model_name_or_path = run.base.files.model
        run.model.save_pretrained(folder, save_embedding_layers=False)
        change_weights(folder, lambda tensors: perturbed(tensors, seed))
        return run_manifest(run, {}, 0.0, 0.0)

    return Store(store).publish(run.recipe.name, write)


def publish_changed(
    store,
    reference,
    change=lambda tensors: tensors,
    *,
    name=None,
    configured=lambda config: None,
    told=lambda manifest: None,
    finish=lambda folder: None,
):
    """A copy of a published adapter with other tensors, under its own name or another.

    `configured` changes its configuration in place, `told` its manifest, and `finish` whatever is left.
    """
    source = Store(store).resolve(reference)

    def write(folder):
        shutil.copytree(source.folder, folder, ignore=lambda *_: [MANIFEST_FILE], dirs_exist_ok=True)
        change_weights(folder, change)
        config = json.loads((folder / CONFIG_FILE).read_text())
        configured(config)
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        values = source.manifest.to_dict()
        told(values)
        finish(folder)
        return UncheckedManifest(values)

    return Store(store).publish(name or source.name, write)


def change_weights(folder, change):
    """Rewrite the tensors of an adapter's folder."""
    changed = change(load_file(folder / WEIGHTS_FILE))
    plain = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in changed.items()}
    save_file(plain, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def damage(adapter):
    """Turn a bit of the last byte of its tensors."""
    file = adapter.folder / WEIGHTS_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def publish_constant_label(store, reference, answer, *, name=None):
    """A copy of a text-classification adapter that gives every text the one label `answer`, of ANSWERS."""

    def change(tensors):
        weight, bias = (f"base_model.model.classifier.{part}" for part in ("weight", "bias"))
        sure = torch.zeros(len(ANSWERS))
        sure[ANSWERS.index(answer)] = 50
        return {**tensors, weight: torch.zeros(len(ANSWERS), tensors[weight].shape[1]), bias: sure}

    def told(manifest):
        manifest["task"].update(labels=ANSWERS, head_labels=ANSWERS)

    return publish_changed(store, reference, change, name=name, told=told)
