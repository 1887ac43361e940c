"""Publish adapters with random weights; they take as much time and memory as trained ones."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from peftlab.base import load_base
from peftlab.errors import ErrorCollector
from peftlab.methods import create_peft_model
from peftlab.recipe import BaseSection, Method
from peftlab.store import CONFIG_FILE, WEIGHTS_FILE, Manifest, ParameterCounts, Store, build_manifest
from peftlab.tasks import ModelContext, Task
from peftlab.tasks.generation.settings import end_tokens
from peftlab.tuning.publish import describe_base

STANDARD_DEVIATION = 0.02  # similar to trained weights


def publish_random(
    store: Store, names: Sequence[str], base_section: BaseSection, method: Method, task: Task, seed: int = 0
) -> None:
    """Publish one adapter for each name; they differ only in their weights."""
    base = load_base(base_section, task, seed=seed, device="cpu")
    with ErrorCollector() as errors:
        task.bind_to_base(
            ModelContext(base.inputs, base.model.config, base.max_length, end_tokens(base.model)), {}, errors
        )
    model = create_peft_model(base, method, task)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    manifest = build_manifest(
        "random",
        task,
        describe_base(base, trust_remote_code=False),
        method=method.type,
        max_length=base.max_length,
        parameters=ParameterCounts(trained=trained, base=base.num_parameters),
        head_modules=tuple(base.head_modules),
        seconds=0.0,
    )
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        template = load_file(Path(folder) / WEIGHTS_FILE)

        def write(target: Path) -> Manifest:
            shutil.copy(Path(folder) / CONFIG_FILE, target)
            weights = {
                name: torch.randn(tensor.shape, generator=generator) * STANDARD_DEVIATION
                for name, tensor in template.items()
            }
            save_file(weights, target / WEIGHTS_FILE, metadata={"format": "pt"})
            return manifest

        for name in names:
            store.publish(name, write)
