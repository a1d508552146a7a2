"""The measurement of latency.py: all cases in turn, then the memory of each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovsdino.benchmarks.lib import board
from ovsdino.benchmarks.lib.latency_cases import Case, Once, case_json, prepared
from ovsdino.console import say
from ovsdino.errors import one_line
from ovsdino.timing import percentiles

__all__ = ["add_memory", "facts", "measure", "row"]

PAUSE_S = 0.02  # torch's and ONNX Runtime's threads spin for a few milliseconds after a call
MEMORY_RUNS = 3


def measure(cases: Sequence[Case], image: np.ndarray, *, runs: int, warmup: int) -> dict[str, Any]:
    """Time all cases in turn.

    Returns:
        ``results``, one row for each case and stage; ``throughput``, images a second one after the other; ``machine``
        with the power drawn meanwhile, where it can be measured.
    """
    calls: list[tuple[Case, Once]] = []
    for case in cases:
        say(f"preparing {case}")
        calls.append((case, prepared(case, image)))
    for _ in range(warmup):
        for _, once in calls:
            once()
    samples: list[list[dict[str, float]]] = [[] for _ in calls]
    machine: dict[str, Any] = {}
    say(f"timing {len(calls)} cases, {runs} calls each")
    with board.power(machine):
        for _ in range(runs):
            for (_, once), rounds in zip(calls, samples, strict=True):
                time.sleep(PAUSE_S)
                rounds.append(once())
    report: dict[str, Any] = {"machine": machine, "results": [], "throughput": []}
    for (case, _), rounds in zip(calls, samples, strict=True):
        for stage in rounds[0]:
            report["results"].append(row(case, stage, [ms[stage] for ms in rounds]))
        mean = sum(ms["end_to_end"] for ms in rounds) / len(rounds)
        report["throughput"].append({**identity(case), "images_per_s": round(1e3 / mean, 2)})
    return report


def identity(case: Case) -> dict[str, str]:
    return dict(zip(("model", "backend", "precision", "input"), case.key, strict=True))


def row(case: Case, stage: str, ms: Sequence[float]) -> dict[str, Any]:
    """Return a line of the report."""
    times = {f"{name}_ms": round(value, 3) for name, value in percentiles(ms).items()}
    return {**identity(case), "stage": stage, **times, "runs": len(ms), "peak_mb": None}


def add_memory(report: dict[str, Any], cases: Sequence[Case], image: np.ndarray, folder: Path) -> None:
    """Put the peak memory of each case into its end_to_end row, measured by a process of its own.

    Raises:
        RuntimeError: The process failed, though the case ran here.
    """
    np.save(folder / "image.npy", image)
    script = Path(__file__).resolve().parent / "latency_cases.py"
    for case in cases:
        say(f"memory of {case}")
        (folder / "case.json").write_text(case_json(case))
        command = [sys.executable, *map(str, (script, folder / "case.json", folder / "image.npy", MEMORY_RUNS))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{case}: the process that measures memory failed: {one_line(done.stderr[-300:])}")
        peak = json.loads(done.stdout.splitlines()[-1])["peak_mb"]
        for line in report["results"]:
            if line["stage"] == "end_to_end" and identity(case).items() <= line.items():
                line["peak_mb"] = peak


def facts(device: str, threads: int, measured: dict[str, Any]) -> dict[str, Any]:
    """Return facts of the machine and its load; its limits too where torch, which measures them, was needed anyway."""
    if "torch" in sys.modules:
        from ovsdino.benchmarks.lib.machine import machine_facts

        found = machine_facts(device)
    else:
        found = {"device": device, "cpu": board.cpu_name(), "threads": threads, **board.board_facts()}
    return {**found, **measured, "load_average": board.load_average(), "date": board.stamp()}
