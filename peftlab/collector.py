"""Python's garbage collector, kept out of the way where very many objects are made that all stay.

It walks over all that is alive each time the number of objects has grown by a share, and finds nothing there: a third
of the time that imports take, and more than half of what reading remembered features takes.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
