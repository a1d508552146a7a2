"""Memory of a call, measured on calls that take a known amount."""

from __future__ import annotations

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
