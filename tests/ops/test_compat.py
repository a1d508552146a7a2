"""Ways around faults of torch."""

from __future__ import annotations

import torch

from ovsdino.ops.compat import constant


def test_mark_of_a_constant_is_torchs_own() -> None:
    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    constant(ours)
    torch.compiler.assume_constant_result(theirs)
    assert vars(ours) == vars(theirs) and vars(ours)
