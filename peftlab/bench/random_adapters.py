"""Adapters of random numbers, published as tuned ones are: what they answer means nothing, what they cost does."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from peftlab.base import load_base
from peftlab.errors import ErrorCollector
from peftlab.methods import adapt
from peftlab.recipe import BaseSection, MethodSection
from peftlab.store import CONFIG_FILE, WEIGHTS_FILE, Manifest, ParameterCounts, Store, build_manifest
from peftlab.tasks import ModelContext, Task
from peftlab.tuning.publish import describe_base

SPREAD = 0.02  # as wide as trained ones are


def publish_random(
    store: Store, names: Sequence[str], base_section: BaseSection, method: MethodSection, task: Task, seed: int = 0
) -> None:
    """Publish an adapter under each of `names`, alike but for their numbers."""
    base = load_base(base_section, task, seed=seed, device="cpu")
    with ErrorCollector() as errors:
        task.bind_to_base(ModelContext(base.tokenizer, base.model.config, base.max_length), {}, errors)
    model = adapt(base, method, task)
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
    with tempfile.TemporaryDirectory() as made:
        model.save_pretrained(made, save_embedding_layers=False)
        like = load_file(Path(made) / WEIGHTS_FILE)

        def write(folder: Path) -> Manifest:
            shutil.copy(Path(made) / CONFIG_FILE, folder)
            values = {name: torch.randn(tensor.shape, generator=generator) * SPREAD for name, tensor in like.items()}
            save_file(values, folder / WEIGHTS_FILE, metadata={"format": "pt"})
            return manifest

        for name in names:
            store.publish(name, write)
