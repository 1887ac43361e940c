"""What is imported when, and that the garbage collector is left as it was."""

import gc
import subprocess
import sys

import pytest

from peftlab.collector import heavy_imports

LATE = ["matplotlib", "sklearn.metrics", "seqeval"]  # what only the end of a run, or a score, needs


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pictures_and_metrics_are_not_imported_before_they_are_needed():
    modules = "peftlab.tuning.training, peftlab.tuning.publishing, peftlab.tuning.encoding, peftlab.runtime"
    assert python(f"import sys, {modules}; print([name for name in {LATE} if name in sys.modules])") == "[]\n"


def test_tasks_and_tokenizing_are_imported_without_torch():
    assert python("import sys, peftlab.tasks.tokenizing, peftlab.cache; print('torch' in sys.modules)") == "False\n"


def test_what_comes_with_torch_is_frozen_once_and_collecting_goes_on():
    code = (
        "import gc; from peftlab.collector import heavy_imports\n"
        "with heavy_imports(): import torch; print(gc.isenabled())\n"
        "frozen = gc.get_freeze_count(); print(gc.isenabled(), frozen > 100_000)\n"
        "with heavy_imports(): kept = [[] for _ in range(1000)]\n"
        "print(gc.get_freeze_count() <= frozen)"
    )
    assert python(code).split() == ["False", "True", "True", "True"]


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
