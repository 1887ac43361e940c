"""Adapters of random numbers, published as tuned ones are: what they answer means nothing, what they cost does."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from peftlab.base import load_base
from peftlab.errors import ErrorCollector
from peftlab.methods import adapt
from peftlab.recipe import BaseSection, MethodSection
from peftlab.runtime.adapter_files import CONFIG, WEIGHTS
from peftlab.store import Store
from peftlab.tasks import ModelContext, Task, task_description

SPREAD = 0.02  # as wide as trained ones are


def publish_random(
    store: Store, names: Sequence[str], base_section: BaseSection, method: MethodSection, task: Task, seed: int = 0
) -> None:
    """Publish an adapter under each of `names`, alike but for their numbers."""
    base = load_base(base_section, task, seed=seed, device="cpu")
    with ErrorCollector() as errors:
        task.bind_to_base(ModelContext(base.tokenizer, base.model.config, base.max_length), {}, errors)
    model = adapt(base, method, task)
    manifest = {
        "task": task_description(task),
        "base": {
            "model": base.files.model,
            "revision": base.files.revision,
            "fingerprint": base.fingerprint,
            "tokenizer_sha256": base.tokenizer_hash,
            "trust_remote_code": False,
            "quantization": base_section.quantization,
        },
        "method": method.type,
        "max_length": base.max_length,
    }
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as made:
        model.save_pretrained(made, save_embedding_layers=False)
        like = load_file(Path(made) / WEIGHTS)

        def write(folder: Path) -> dict[str, Any]:
            shutil.copy(Path(made) / CONFIG, folder)
            values = {name: torch.randn(tensor.shape, generator=generator) * SPREAD for name, tensor in like.items()}
            save_file(values, folder / WEIGHTS, metadata={"format": "pt"})
            return dict(manifest)

        for name in names:
            store.publish(name, write)
