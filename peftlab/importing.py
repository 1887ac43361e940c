"""Importing torch and its friends, which takes seconds, without what makes it longer than it must be."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import inside the block without garbage collection: it would take a third of the time and find nothing.

    The imports make near a million functions and classes, which stay for good, and Python's collector walks over all
    that is alive again and again. Where torch comes with this block, they are frozen at its end, so that no later
    collection walks over them either. Nothing large can be frozen along: before torch there are no tensors.
    """
    first, collecting = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        if collecting:
            gc.enable()
