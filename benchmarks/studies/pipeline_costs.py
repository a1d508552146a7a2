"""Costs of the pipeline around the network: the start of a command, a large photograph, a long list of words.

    python benchmarks/studies/pipeline_costs.py --image street.jpg --before CHECKOUT --json

Each figure is of a process of its own, those of the two checkouts in turn; every time is the least and the median of
its runs, and the machine's load average is in the report. `--before` is another checkout of this repository with
its native module built; without it only this one is measured.

- help: `ovsdino segment --help`; models: `ovsdino models`; cold: `ovsdino segment` of the photograph by five words.
- large: the photograph enlarged to 4000x3000 with noise, 150 words; bare labels are `scores=False`.
- many: 10 000 words; memory above the process that has segmented with two words.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovsdino.benchmarks.lib.board import cpu_name
from ovsdino.benchmarks.lib.report import ROOT, ReportOptions
from ovsdino.console import say
from ovsdino.parsing import run_script

CLASSES = "road, car, sky, tree, building"
CHILD = ROOT / "benchmarks" / "lib" / "pipeline_child.py"


@dataclass(frozen=True, kw_only=True)
class PipelineCosts(ReportOptions):
    """Measure what the pipeline around the network costs, before and after a change."""

    image: Path
    """A photograph, such as one of CamVid."""
    before: Path | None = None
    """Another checkout to compare with, its native module built."""
    rounds: int = 5
    """Processes of each command."""
    parts: tuple[str, ...] = ("help", "models", "cold", "large", "many")
    """What to measure."""

    def run(self) -> int:
        image = self.image.resolve()
        trees = {"after": ROOT, **({} if self.before is None else {"before": self.before.resolve()})}
        report: dict[str, Any] = {"machine": {"cpu": cpu_name(), "cores": os.cpu_count()}, "load_average": []}
        with tempfile.TemporaryDirectory() as folder:
            lines = {
                "help": ["segment", "--help"],
                "models": ["models"],
                "cold": ["segment", str(image), "--classes", CLASSES, "--output", folder],
            }
            for part in self.parts:
                say(f"{part} ...")
                report["load_average"].append([part, round(os.getloadavg()[0], 2)])
                if part in lines:
                    report[part] = self._commands(trees, lines[part])
                else:
                    report[part] = {name: child(tree, part, image, folder) for name, tree in trees.items()}
        if "many" in report:
            after, *before = [report["many"][name].pop("labels") for name in trees]
            if before:
                equal = sum(a == b for a, b in zip(after, before[0], strict=True)) / len(after)
                report["many"]["equal_labels"] = round(equal, 5)
        return self.publish(report, lambda found: json.dumps(found, indent=1))

    def _commands(self, trees: dict[str, Path], line: list[str]) -> dict[str, Any]:
        """Return the milliseconds of a command in each checkout, the checkouts in turn."""
        for tree in trees.values():
            command(tree, line)  # fills the file cache, and the bytecode's
        seen: dict[str, list[float]] = {name: [] for name in trees}
        for _ in range(self.rounds):
            for name, tree in trees.items():
                seen[name].append(command(tree, line))
        return {
            name: {"least_ms": round(min(times), 1), "median_ms": round(statistics.median(times), 1)}
            for name, times in seen.items()
        }


def environment(tree: Path) -> dict[str, str]:
    """Return the environment in which a checkout's package is imported."""
    return {**os.environ, "PYTHONPATH": str(tree), "OVSDINO_OFFLINE": "1"}


def command(tree: Path, line: list[str]) -> float:
    """Return the milliseconds of `ovsdino LINE` of a checkout, from the process's start to its end."""
    start = time.perf_counter()
    whole = [sys.executable, "-m", "ovsdino", *line]
    subprocess.run(whole, cwd=tree, env=environment(tree), check=True, capture_output=True)
    return (time.perf_counter() - start) * 1000


def child(tree: Path, part: str, image: Path, folder: str) -> dict[str, Any]:
    """Return what `pipeline_child.py` measures of a checkout."""
    line = [sys.executable, str(CHILD), part, str(image), folder]
    done = subprocess.run(line, env=environment(tree), check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    raise SystemExit(run_script(PipelineCosts, "pipeline_costs.py"))
