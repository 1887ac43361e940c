"""A manifest to publish files with."""

from peftlab.store import BaseInfo, BaseMemory, ParameterCounts, build_manifest
from peftlab.tasks import Scores
from peftlab.tasks.token_classification import TokenClassificationTask

EXAMPLE_BASE = BaseInfo(
    model="tiny",
    revision=None,
    fingerprint="0" * 64,
    inputs_fingerprint="1" * 64,
    trust_remote_code=False,
    quantization=None,
    pretrained_head=(),
    memory=BaseMemory(fp32=4000, in_memory=4000),
)


def example_manifest(**changes):
    """A manifest with every field that has no default; `changes` are arguments of `build_manifest`."""
    fields = {
        "method": "lora",
        "max_length": 128,
        "parameters": ParameterCounts(trained=10, base=1000),
        "head_modules": ("classifier",),
        "seconds": 1.5,
        "scores": {"test": Scores({"f1": 0.5})},
    }
    return build_manifest("ner-news", TokenClassificationTask(labels=["PER"]), EXAMPLE_BASE, **{**fields, **changes})
