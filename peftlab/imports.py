"""Lazy and fast imports of heavy libraries.

Modules that the command line loads before it knows whether there is work to do take heavy libraries from here, as in
`from peftlab.imports import torch`: they are imported on first use. Modules that cannot work without a library import
it at the top as usual, and are themselves imported inside `heavy_imports()`.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any


class LazyModule(ModuleType):
    """A module that is imported when one of its attributes or submodules is first used."""

    def __getattr__(self, name: str) -> Any:
        """The attribute of the real module, or else its submodule of that name."""
        module = import_module(self.__name__)
        if hasattr(module, name) or find_spec(f"{self.__name__}.{name}") is None:
            return getattr(module, name)
        return import_module(f"{self.__name__}.{name}")


if TYPE_CHECKING:
    auto_models: Any
    import datasets as datasets
    import gguf as gguf
    import huggingface_hub as huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors
    import jinja2 as jinja2
    import matplotlib as matplotlib
    import matplotlib.figure
    import numpy as numpy
    import peft as peft

    pyarrow: Any
    rouge_scorer: Any
    sacrebleu_metrics: Any
    import safetensors as safetensors

    scipy_optimize: Any
    scipy_stats: Any
    seqeval_metrics: Any
    sklearn_metrics: Any
    import tokenizers as tokenizers
    import torch as torch
    import transformers as transformers
else:
    auto_models = LazyModule("transformers.models.auto.modeling_auto")
    datasets = LazyModule("datasets")
    gguf = LazyModule("gguf")
    huggingface_hub = LazyModule("huggingface_hub")
    matplotlib = LazyModule("matplotlib")
    numpy = LazyModule("numpy")
    peft = LazyModule("peft")
    pyarrow = LazyModule("pyarrow")
    safetensors = LazyModule("safetensors")
    tokenizers = LazyModule("tokenizers")
    jinja2 = LazyModule("jinja2")
    rouge_scorer = LazyModule("rouge_score.rouge_scorer")
    sacrebleu_metrics = LazyModule("sacrebleu.metrics")
    scipy_optimize = LazyModule("scipy.optimize")
    scipy_stats = LazyModule("scipy.stats")
    seqeval_metrics = LazyModule("seqeval.metrics")
    sklearn_metrics = LazyModule("sklearn.metrics")
    torch = LazyModule("torch")
    transformers = LazyModule("transformers")

KERNEL_CACHE_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
"""Environment variables that set the capacity of oneDNN's kernel cache; it reads them before its first product."""
KERNEL_CACHE_CAPACITY = "256"


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Run the block without garbage collection."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import torch and similar libraries inside the block, without garbage collection.

    The imports create about a million objects that live until the process ends. The first such block freezes them, so
    that later collections skip them too. It freezes no large tensor, because there is none before torch is imported.
    """
    _limit_kernel_cache()
    is_first = "torch" not in sys.modules
    with gc_disabled(), _lazy_torch_compile():
        yield
        if is_first:
            gc.freeze()


def _limit_kernel_cache() -> None:
    """Limit oneDNN's kernel cache to about ten batches, unless the user set a limit.

    oneDNN compiles a kernel of up to 2 MB for each shape of a bfloat16 product and keeps 1024 by default. Few of them
    are used again (decision 0030).
    """
    if not any(name in os.environ for name in KERNEL_CACHE_VARIABLES):
        os.environ[KERNEL_CACHE_VARIABLES[0]] = KERNEL_CACHE_CAPACITY


@contextmanager
def _lazy_torch_compile() -> Iterator[None]:
    """Inside the block, `torch.compile` used as a decorator imports the compiler at the function's first call.

    PEFT imports bitsandbytes, which decorates four functions that peftlab does not call. Importing the compiler for
    them would take 1.5 s of the 7 s before training begins (decision 0010).
    """
    import torch

    torch_compile = torch.compile
    torch.compile = partial(_compile_on_first_call, torch_compile)
    try:
        yield
    finally:
        torch.compile = torch_compile


def _compile_on_first_call(torch_compile: Callable[..., Any], model: Any = None, **options: Any) -> Any:
    """What `torch_compile` returns for `model` and `options`; a function is compiled at its first call."""
    if model is None:  # used as a decorator with options
        return partial(_compile_on_first_call, torch_compile, **options)
    if not isinstance(model, FunctionType):
        return torch_compile(model, **options)
    compiled = cache(partial(torch_compile, model, **options))
    return wraps(model)(lambda *args, **kwargs: compiled()(*args, **kwargs))
