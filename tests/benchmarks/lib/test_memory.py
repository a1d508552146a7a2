"""Memory of a call, measured on calls that take a known amount."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ovsdino.benchmarks.lib import memory


def test_extra_memory_is_what_a_call_takes_beyond_its_result() -> None:
    def wasteful(x: torch.Tensor) -> torch.Tensor:
        return (x.expand(40_000_000) + 1)[:1000].clone()

    inputs = (torch.zeros(1),)
    wasteful(*inputs)
    found = memory.extra_mb(wasteful, inputs, "cpu")
    if found is None:
        pytest.skip("no /proc/self/clear_refs here")
    assert 150 < found < 200
    assert memory.extra_mb(lambda x: x + 1, inputs, "cpu") < 20


def test_the_peak_is_at_least_what_is_resident() -> None:
    assert 10 < memory.resident_mb() <= memory.peak_mb() < 1e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    script = """
import resource
from ovsdino.benchmarks.lib.memory import keep_freed
import torch

def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def one_call() -> None:
    torch.ones(3_000_000)
    torch.ones(5_000_000)

assert keep_freed()
for _ in range(5):
    one_call()
before = faults()
for _ in range(10):
    one_call()
print(faults() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8000  # 10 x 32 MB are 78 000 pages
