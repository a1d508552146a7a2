"""Interleaved timing: copies of inputs that overflow a cache."""

from __future__ import annotations

import torch

from ovsdino.benchmarks.lib import timing


def test_inputs_rotate_until_they_overflow_the_cache_twice() -> None:
    x = torch.zeros(1000, requires_grad=True)
    copies = timing.rotation((x, 3), 10_000)
    assert len(copies) == 6 and copies[0][0] is x and all(copy[1] == 3 for copy in copies)
    assert len({copy[0].data_ptr() for copy in copies}) == 6 and all(copy[0].requires_grad for copy in copies)
    assert len(timing.rotation((x,), 100)) == 2 and len(timing.rotation((), 100)) == 1
