"""The one-command GPU check on a machine that has no GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.install.sandbox import ROOT, attempt


def test_without_a_gpu_it_ends_with_one_clear_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = attempt(sys.executable, ROOT / "scripts" / "gpu_check.py", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout.startswith("error: no CUDA device")
    assert len(done.stdout.splitlines()) == 1
    assert not (tmp_path / "out").exists()
