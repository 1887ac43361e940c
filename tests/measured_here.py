"""Measuring without a fresh interpreter, which takes seconds to import torch and its friends."""

import json
from importlib import import_module

from peftlab.bench import ProcessResult


def call_here(module, name, *, environment=None, **given):
    """In the place of `measure_call`: the same function in this process, given what JSON makes of the arguments."""
    value = getattr(import_module(module), name)(**json.loads(json.dumps(given)))
    return ProcessResult(100.0, 10**9, json.dumps(value))
