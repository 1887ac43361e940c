"""Run measured functions in this process, because a new interpreter takes seconds to import torch."""

import json
from importlib import import_module

from peftlab.bench import ProcessResult


def call_in_this_process(module, name, *, environment=None, **given):
    """Stand in for `call_in_process`: call the function in this process, with arguments as JSON values."""
    value = getattr(import_module(module), name)(**json.loads(json.dumps(given)))
    return ProcessResult(100.0, 10**9, json.dumps(value))
