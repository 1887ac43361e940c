"""What is imported when, and that the garbage collector and torch.compile are left as they were."""

import gc
import os
import subprocess
import sys

import pytest
import torch

from peftlab.imports import KERNEL_CACHE_VARIABLES, heavy_imports

LATE = [
    "matplotlib",
    "sklearn.metrics",
    "seqeval",
    "torch._inductor.compile_fx",
]  # what only some runs need, or their end


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plots_metrics_and_compiler_are_imported_lazily():
    modules = "peftlab.runtime, peftlab.tuning.train, peftlab.tuning.publish, peftlab.tuning.encoding"
    assert python(f"import sys, {modules}; print([name for name in {LATE} if name in sys.modules])") == "[]\n"


def test_tasks_are_imported_without_torch():
    modules = "peftlab.tasks.inputs.encoding, peftlab.data.cache"
    assert python(f"import sys, {modules}; print('torch' in sys.modules)") == "False\n"


def test_heavy_imports_freeze_objects_once():
    code = (
        "import gc; from peftlab.imports import heavy_imports\n"
        "with heavy_imports(): import torch; print(gc.isenabled())\n"
        "frozen = gc.get_freeze_count(); print(gc.isenabled(), frozen > 100_000)\n"
        "with heavy_imports(): kept = [[] for _ in range(1000)]\n"
        "print(gc.get_freeze_count() <= frozen)"
    )
    assert python(code).split() == ["False", "True", "True", "True"]


@pytest.mark.parametrize("asked", [{}, *({name: "7"} for name in KERNEL_CACHE_VARIABLES)])
def test_kernel_cache_is_limited_unless_environment_sets_it(monkeypatch, asked):
    for name in KERNEL_CACHE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ, **asked})
    with heavy_imports():
        pass
    result = {name: os.environ[name] for name in KERNEL_CACHE_VARIABLES if name in os.environ}
    assert result == (asked or {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"})


def test_gc_disabled_restores_previous_state():
    gc.disable()
    try:
        with heavy_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(ImportError), heavy_imports():
        raise ImportError
    assert gc.isenabled()


def test_decorated_function_is_compiled_at_first_call(monkeypatch):
    asked = []

    def compile_now(model, **options):
        asked.append(options)
        return lambda x: -model(x)

    monkeypatch.setattr(torch, "compile", compile_now)
    with heavy_imports():

        @torch.compile(dynamic=True)
        def doubled(x):
            """Twice x."""
            return 2 * x

        squared = torch.compile(lambda x: x * x)
        torch.compile(torch.nn.Identity(), mode="default")
    assert torch.compile is compile_now
    assert asked == [{"mode": "default"}]
    assert (doubled(2), doubled(3), squared(3)) == (-4, -6, -9)
    assert asked == [{"mode": "default"}, {"dynamic": True}, {}]
    assert doubled.__doc__ == "Twice x."
