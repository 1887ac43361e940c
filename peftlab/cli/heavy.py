"""Packages that import torch; each is imported when a command first uses it, so `--help` and errors come at once."""

from typing import TYPE_CHECKING

from peftlab.imports import LazyModule

if TYPE_CHECKING:
    from peftlab import interop as interop
    from peftlab import runtime as runtime
else:
    interop = LazyModule("peftlab.interop")
    runtime = LazyModule("peftlab.runtime")
