"""Repeat the numeric tests under instruction sets, numbers of threads and seeds, and table the failures.

    python scripts/numerics_matrix.py                                         # 3 x 2 x 5 runs
    python scripts/numerics_matrix.py --settings avx2 --threads 1 --seeds 0 7
    python scripts/numerics_matrix.py --output other.json -- tests/ops/test_bounds.py -x

The words after ``--`` are pytest's arguments in place of the selection below. Each run is a process of its own, since
oneDNN, MKL and PyTorch read their switches once. Exit code 1 where a run failed.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from ovsdino.benchmarks.lib.board import cpu_name
from ovsdino.benchmarks.lib.report import RESULTS, ROOT, json_text, save
from ovsdino.parsing import Argument, run_script

# The environment of each setting, and the instruction set of the kernels of ovsdino._C.
SETTINGS: dict[str, tuple[dict[str, str], str]] = {
    "default": ({}, "best"),
    "avx2": (
        {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        "avx2",
    ),
    "baseline": (
        {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        "baseline",
    ),
}

# Outputs and gradients of every op on every backend of the CPU against float64, the kernels of every instruction set,
# and the bounds themselves. bfloat16 takes the code of float16 with wider bounds, and is left out.
SELECTION = [
    "tests/ops/test_contract.py",
    "tests/ops/test_bounds.py",
    "tests/ops/test_structure_attention.py",
    "tests/ops/test_guided_upsample.py",
    "tests/ops/test_mask_pool.py",
    "-k",
    "(rounding_explains or native_kernels or order or caught) and not bfloat16 and not dtype1",
]


def once(setting: str, threads: int, seed: int, selection: list[str]) -> dict[str, Any]:
    """Run the selection once.

    Returns:
        The row of the table: setting, threads, seed, passed, failed, skipped, seconds, and the failed tests.
    """
    switches, isa = SETTINGS[setting]
    environment = {name: x for name, x in os.environ.items() if not any(name in s for s, _ in SETTINGS.values())}
    environment |= switches | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += [f"--seed={seed}", f"--native-isa={isa}"]
        command += ["--hypothesis-profile=seeded", f"--hypothesis-seed={seed}", *selection]
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        wall = time.monotonic() - start
        if done.returncode not in (0, 1) or not report.exists():
            raise SystemExit(f"pytest stopped with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "setting": setting,
        "threads": threads,
        "seed": seed,
        "passed": len(cases) - len(failed) - skipped,
        "failed": len(failed),
        "skipped": skipped,
        "seconds": round(wall, 1),
        "failures": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
    }


@dataclass(frozen=True, kw_only=True)
class NumericsMatrix:
    """Run the matrix, print its table and write the JSON file; the exit code is 1 where a test failed."""

    selection: Annotated[tuple[str, ...], Argument("[-- PYTEST-ARGUMENT...]")] = ()
    """Arguments of pytest in place of the selection of this script."""
    settings: tuple[Literal["default", "avx2", "baseline"], ...] = ("default", "avx2", "baseline")
    """Instruction sets."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the tests' random numbers."""
    output: Path = RESULTS / "numerics_matrix.json"
    """JSON file, written again after each run."""

    def run(self) -> int:
        selection, rows = list(self.selection) or SELECTION, []
        print("| setting | threads | seed | passed | failed | seconds |\n|---|---|---|---|---|---|")
        for setting, threads, seed in itertools.product(self.settings, self.threads, self.seeds):
            row = once(setting, threads, seed, selection)
            rows.append(row)
            cells = (row[name] for name in ("setting", "threads", "seed", "passed", "failed", "seconds"))
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            for name in row["failures"]:
                print(f"  FAILED {name}", flush=True)
            found = {"cpu": cpu_name(), "torch": version("torch"), "selection": selection, "runs": rows}
            save(self.output, json_text(found))
        passed, failed = (sum(row[name] for row in rows) for name in ("passed", "failed"))
        print(f"{len(rows)} runs, {passed} passed, {failed} failed; wrote {self.output}")
        return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(run_script(NumericsMatrix, "numerics_matrix.py"))
