"""A cache of features between runs: the same examples are encoded once for the same processor."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import peftlab.tasks
from peftlab.base import Base
from peftlab.data.cache import evict_oldest, read_cache, write_cache
from peftlab.imports import gc_disabled
from peftlab.store import TaskInfo
from peftlab.tasks import Feature, Task
from peftlab.tasks.inputs.encoding import ProgressCallback, encode_examples

FOLDER = "features"
LIMIT = 2 * 2**30  # bytes of all cached features


def cached_features(
    task: Task,
    examples: Sequence[Any],
    base: Base,
    max_length: int,
    *,
    training: bool,
    on_progress: ProgressCallback = lambda done, total: None,
) -> list[list[Feature]]:
    """The features of each example, from the cache folder if possible; see `encode_examples`."""
    name = f"{FOLDER}/{_key(task, examples, base, max_length, training)}.json"
    with gc_disabled():
        features = _read(read_cache(name), task.inputs_class.feature_class, len(examples))
        if features is None:
            features = encode_examples(
                task, base.inputs, examples, max_length=max_length, training=training, on_progress=on_progress
            )
            write_cache(name, _to_bytes(features))
            evict_oldest(FOLDER, LIMIT)
    return features


def _key(task: Task, examples: Sequence[Any], base: Base, max_length: int, training: bool) -> str:
    """sha256 over everything that features depend on: the encoder, and the content of each example but its location."""
    context = {
        "versions": [importlib.metadata.version(name) for name in ("peftlab", *task.inputs_class.packages)],
        "code": _code_hash(),
        "inputs": [base.inputs_fingerprint, *base.inputs.cache_key],
        "task": TaskInfo.from_task(task).to_dict(),
        "max_length": max_length,
        "training": training,
    }
    digest = hashlib.sha256(json.dumps(context, sort_keys=True, default=str).encode())
    for example in examples:
        content = [value for name, value in vars(example).items() if name != "where"]
        digest.update(repr((type(example).__name__, content)).encode(errors="surrogatepass"))
    return digest.hexdigest()


@cache
def _code_hash() -> str:
    """sha256 of the code of all tasks, so that changed code invalidates the cache."""
    files = sorted(Path(*peftlab.tasks.__path__).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _to_bytes(features: Sequence[Sequence[Feature]]) -> bytes:
    """JSON after a line with its sha256."""
    plain = [[feature.as_dict() for feature in windows] for windows in features]
    body = json.dumps(plain, separators=(",", ":")).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _read(content: bytes | None, feature_class: type[Feature], num_examples: int) -> list[list[Feature]] | None:
    """The inverse of `_to_bytes`; None if the content is missing or damaged."""
    digest, _, body = (content or b"").partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    features = [[feature_class.from_dict(plain) for plain in windows] for windows in json.loads(body)]
    return features if len(features) == num_examples else None
