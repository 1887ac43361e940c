"""Heavy libraries: imported on first use by modules that must load fast, and quickly by those that need them at once.

Modules that the command line loads before it knows that there is work to do import heavy libraries from here:
`from peftlab.imports import torch`. Modules that cannot do without a library import it as usual, at the top, and are
themselves imported inside `heavy_imports()`.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from importlib import import_module
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any


class LazyModule(ModuleType):
    """A module that is imported when one of its attributes is first used."""

    def __getattr__(self, name: str) -> Any:
        """The attribute of the real module."""
        return getattr(import_module(self.__name__), name)


if TYPE_CHECKING:
    import datasets as datasets
    import numpy as numpy
    import peft as peft
    import torch as torch
    import transformers as transformers
else:
    datasets = LazyModule("datasets")
    numpy = LazyModule("numpy")
    peft = LazyModule("peft")
    torch = LazyModule("torch")
    transformers = LazyModule("transformers")

KERNELS_KEPT = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
"""How many oneDNN keeps, by its own names, for the environment: it reads them when it multiplies first."""
FEW_KERNELS = "256"


@contextmanager
def collector_off() -> Iterator[None]:
    """Collect no garbage inside the block."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import torch and its friends inside the block: near a million functions and classes, which stay for good.

    Where torch comes with this block, they are frozen at its end, so that no later collection walks over them either.
    Nothing large can be frozen along: before torch there are no tensors.
    """
    _keep_few_kernels()
    first = "torch" not in sys.modules
    with collector_off(), _compiled_when_called():
        yield
        if first:
            gc.freeze()


def _keep_few_kernels() -> None:
    """Have oneDNN keep the kernels of some ten batches: it compiles one for each shape of a product in bfloat16, of up
    to two megabytes, and would keep the last 1024, few of which are ever used again (decision 0030)."""
    if not any(name in os.environ for name in KERNELS_KEPT):
        os.environ[KERNELS_KEPT[0]] = FEW_KERNELS


@contextmanager
def _compiled_when_called() -> Iterator[None]:
    """Inside the block, torch.compile imports the compiler when a function is called, not when it is decorated.

    PEFT imports bitsandbytes, which decorates four functions that hardly anyone calls.
    """
    import torch

    at_once = torch.compile
    torch.compile = partial(_when_called, at_once)
    try:
        yield
    finally:
        torch.compile = at_once


def _when_called(compile_now: Callable[..., Any], model: Any = None, **options: Any) -> Any:
    """What torch.compile gives for `model` and `options`, or a function that asks for it when it is called first."""
    if model is None:  # it will be told as a decorator
        return partial(_when_called, compile_now, **options)
    if not isinstance(model, FunctionType):
        return compile_now(model, **options)
    compiled = cache(partial(compile_now, model, **options))
    return wraps(model)(lambda *args, **kwargs: compiled()(*args, **kwargs))
