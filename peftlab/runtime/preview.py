"""The outputs of an adapter as a bank computes them, before the adapter is published."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from peftlab.runtime.adapter_files import read_folder
from peftlab.runtime.adapter_template import LoadedAdapter, extract_adapter
from peftlab.runtime.forward import forward_features
from peftlab.runtime.generation import routed_model
from peftlab.runtime.loaded_base import LoadedBase
from peftlab.runtime.options import BankSettings
from peftlab.store import Adapter
from peftlab.tasks import Feature
from peftlab.tasks.prediction import forward


class BankPreview:
    """An adapter whose files are complete but not published, on its own copy of the base.

    Args:
        adapter: Its folder and manifest.
        device: auto, cpu, cuda or mps.

    Raises:
        IntegrityError: the files are damaged, or do not fit the base.
    """

    def __init__(self, adapter: Adapter, *, device: str) -> None:
        trusted = adapter.manifest.base.trust_remote_code
        self._base = LoadedBase(adapter, BankSettings(device=device, precision="fp32", trust_remote_code=trusted))
        files = read_folder(adapter)
        self._base.check(files)
        self._loaded, _ = extract_adapter(files, self._base.attach(files), self._base.router)

    def outputs(self, features: Sequence[Feature]) -> list[Tensor]:
        """The output of each labelled feature, computed in one batch; see `Head.outputs`."""
        base, loaded = self._base, self._loaded
        if loaded.task.outputs.generation(replace(features[0], labels=None)):
            return self._generating_outputs(features)
        numbered = list(enumerate(features))
        by_number: dict[int, LoadedAdapter] = dict.fromkeys(range(len(features)), loaded)
        outputs = forward_features(numbered, lambda keys: nullcontext(by_number), base.router, base.inputs)
        return [output for output in outputs if isinstance(output, Tensor)]

    @torch.inference_mode()
    def _generating_outputs(self, features: Sequence[Feature]) -> list[Tensor]:
        """The outputs of the model that generates texts, for given targets."""
        model, routing = routed_model([self._loaded] * len(features), self._base.router)
        with routing:
            return forward(self._loaded.task, model, self._base.inputs, features)
