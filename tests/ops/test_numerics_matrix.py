"""scripts/numerics_matrix.py on one small test: its rows, its file, and that its switches reach the tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovsdino.parsing import parse, run_script
from scripts.numerics_matrix import SELECTION, NumericsMatrix

ROOT = Path(__file__).resolve().parents[2]


def test_arguments_after_two_dashes_are_pytests() -> None:
    options = parse(NumericsMatrix, "m", ["--seeds", "3", "4", "--threads", "1", "--", "tests/ops", "-x"])
    assert options == NumericsMatrix(seeds=(3, 4), threads=(1,), selection=("tests/ops", "-x"))
    options = NumericsMatrix()
    assert len(options.settings) * len(options.threads) * len(options.seeds) == 30 and options.selection == ()
    assert all((ROOT / name).is_file() for name in SELECTION if name.endswith(".py"))


PROBE = """
import os, random, torch
from ovsdino.native import native

def test_switches():
    assert torch.get_num_threads() == 2 and os.environ["ONEDNN_MAX_CPU_ISA"] == "SSE41"
    assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    assert native is None or native.build_info()["isa"] == "baseline"
    assert torch.initial_seed() == 5 and random.random() == random.Random(5).random()

def test_that_fails():
    assert False
"""


def test_switches_reach_the_tests_and_failures_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_probe.py").write_text(PROBE)
    out = tmp_path / "out" / "matrix.json"
    wanted = ["--settings", "baseline", "--threads", "2", "--seeds", "5", "--output", str(out)]
    tests = [str(tmp_path / "test_probe.py"), "--confcutdir", str(ROOT), "-p", "tests.conftest"]
    assert run_script(NumericsMatrix, "numerics_matrix.py", [*wanted, "--", *tests]) == 1
    row = json.loads(out.read_text())["runs"][0]
    assert (row["setting"], row["threads"], row["seed"]) == ("baseline", 2, 5)
    assert (row["passed"], row["failed"]) == (1, 1), row
    assert (
        row["failures"] == ["test_probe::test_that_fails"] and "| baseline | 2 | 5 | 1 | 1 |" in capsys.readouterr().out
    )
