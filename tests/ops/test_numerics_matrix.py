"""scripts/numerics_matrix.py on one small test: its rows, its file, and that its switches reach the tests."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("numerics_matrix", ROOT / "scripts" / "numerics_matrix.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_arguments_after_two_dashes_are_pytests(matrix: ModuleType) -> None:
    options, selection = matrix.parse(["--seeds", "3", "4", "--threads", "1", "--", "tests/ops", "-x"])
    assert (options.seeds, options.threads, selection) == ([3, 4], [1], ["tests/ops", "-x"])
    options, selection = matrix.parse([])
    assert len(options.settings) * len(options.threads) * len(options.seeds) == 30 and selection is matrix.SELECTION
    assert all((ROOT / name).is_file() for name in selection if name.endswith(".py"))


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


def test_switches_reach_the_tests_and_failures_the_file(
    matrix: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_probe.py").write_text(PROBE)
    out = tmp_path / "out" / "matrix.json"
    wanted = ["--settings", "baseline", "--threads", "2", "--seeds", "5", "--output", str(out)]
    tests = [str(tmp_path / "test_probe.py"), "--confcutdir", str(ROOT), "-p", "tests.conftest"]
    monkeypatch.setattr("sys.argv", ["numerics_matrix.py", *wanted, "--", *tests])
    assert matrix.main() == 1
    row = json.loads(out.read_text())["runs"][0]
    assert (row["setting"], row["threads"], row["seed"]) == ("baseline", 2, 5)
    assert (row["passed"], row["failed"]) == (1, 1), row
    assert (
        row["failures"] == ["test_probe::test_that_fails"] and "| baseline | 2 | 5 | 1 | 1 |" in capsys.readouterr().out
    )
