"""Ways around faults of torch."""

from __future__ import annotations

import pytest
import torch

from ovsdino.ops.compat import constant, exports_norms, unpickles_safely


def test_mark_of_a_constant_is_torchs_own() -> None:
    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    constant(ours)
    torch.compiler.assume_constant_result(theirs)
    assert vars(ours) == vars(theirs) and vars(ours)


@pytest.mark.parametrize(
    ("version", "safe"), [("2.5.0a0+872d972e41.nv24.08", False), ("2.9.1", False), ("2.10.0+cpu", True), ("3.0", True)]
)
def test_pickled_files_are_read_from_the_release_on_that_closed_the_holes(version, safe):
    assert unpickles_safely(version) is safe


@pytest.mark.parametrize(("version", "exports"), [("2.5.1+cu124", False), ("2.6.0", True), ("2.11.0+cpu", True)])
def test_norms_are_exported_from_the_release_on_that_can(version, exports):
    assert exports_norms(version) is exports
