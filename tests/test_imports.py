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


def test_pictures_metrics_and_the_compiler_are_not_imported_before_they_are_needed():
    modules = "peftlab.runtime, peftlab.tuning.train, peftlab.tuning.publish, peftlab.tuning.encoding"
    assert python(f"import sys, {modules}; print([name for name in {LATE} if name in sys.modules])") == "[]\n"


def test_tasks_and_tokenizing_are_imported_without_torch():
    modules = "peftlab.tasks.inputs.encoding, peftlab.data.cache"
    assert python(f"import sys, {modules}; print('torch' in sys.modules)") == "False\n"


def test_what_comes_with_torch_is_frozen_once_and_collecting_goes_on():
    code = (
        "import gc; from peftlab.imports import heavy_imports\n"
        "with heavy_imports(): import torch; print(gc.isenabled())\n"
        "frozen = gc.get_freeze_count(); print(gc.isenabled(), frozen > 100_000)\n"
        "with heavy_imports(): kept = [[] for _ in range(1000)]\n"
        "print(gc.get_freeze_count() <= frozen)"
    )
    assert python(code).split() == ["False", "True", "True", "True"]


@pytest.mark.parametrize("asked", [{}, *({name: "7"} for name in KERNEL_CACHE_VARIABLES)])
def test_onednn_keeps_few_kernels_unless_the_environment_says_how_many(monkeypatch, asked):
    for name in KERNEL_CACHE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ, **asked})
    with heavy_imports():
        pass
    told = {name: os.environ[name] for name in KERNEL_CACHE_VARIABLES if name in os.environ}
    assert told == (asked or {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"})


def test_a_collector_that_was_off_stays_off_and_an_error_turns_it_on_again():
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


def test_a_decorated_function_is_compiled_when_it_is_called(monkeypatch):
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
