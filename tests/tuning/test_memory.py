"""Memory that is released after training."""

import platform
import subprocess
import sys

import pytest

from peftlab.tuning import memory

HOLES = """
import torch
from peftlab.tuning.memory import release_freed_memory

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

before = held()
tensors = [torch.ones(15_000) for _ in range(5_000)]
kept = tensors[::50]
del tensors
with_holes = held()
release_freed_memory()
print(with_holes - before, held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to return memory")
def test_release_freed_memory():
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    with_holes, after = map(int, done.stdout.split())
    assert with_holes > 250e6  # 300 MB were allocated, and all but 2 % was freed
    assert after < 50e6


def test_release_freed_memory_without_glibc(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.release_freed_memory()
    monkeypatch.setattr(memory.sys, "platform", "win32")
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    memory.release_freed_memory()
