"""The measurement of latency.py: all cases in turn while the machine is watched; then each alone: power and memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovsdino.benchmarks.lib import board
from ovsdino.benchmarks.lib.latency_cases import Calls, Case, case_json, prepared
from ovsdino.benchmarks.lib.telemetry import INTERVAL_S, Watch, fifths, slowdowns, source, summary, throttle_counts
from ovsdino.console import say
from ovsdino.errors import one_line
from ovsdino.timing import percentiles

__all__ = ["Plan", "add_memory", "facts", "identity", "measure", "row"]

PAUSE_S = 0.02  # torch's and ONNX Runtime's threads spin for a few milliseconds after a call
MEMORY_RUNS = 3
IDLE_S = 2.0
LEAST_P99 = 1000  # calls: below, the slowest hundredth is fewer than ten of them
DEFAULT = "default"  # the stage of the default path, the whole call

Prepared = list[tuple[Case, Calls]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The extent of a measurement.

    Attributes:
        runs: Timed calls of each case.
        seconds: Time for all of them in place of `runs`.
        warmup: Calls of each case before that, at least.
        warmup_seconds: Time of all calls before that, at least: clocks rise in it.
        default: Also time the default path.
        power_seconds: Time of the block of each case in which power is measured; 0: no block.
    """

    runs: int = 50
    seconds: float | None = None
    warmup: int = 5
    warmup_seconds: float = 0.0
    default: bool = True
    power_seconds: float = 0.0


def measure(cases: Sequence[Case], image: np.ndarray, plan: Plan) -> dict[str, Any]:
    """Time all cases in turn.

    Returns:
        ``results``, one row for each case and stage; ``throughput``, images a second one after the other; ``power``, a
        row for each case where something measures it; ``telemetry``, what the machine did meanwhile; ``machine`` with
        the power drawn while all were timed.
    """
    calls: Prepared = []
    for case in cases:
        say(f"preparing {case}")
        calls.append((case, prepared(case, image)))
    with Watch() as watch:
        idle = idle_watts(watch) if plan.power_seconds else None
        warm(calls, plan)
        load, events, start = board.load_average(), throttle_counts(), time.monotonic()
        bare, whole = timed(calls, plan)
        samples = watch.between(start, time.monotonic())
        numbers = summary(samples)
        report: dict[str, Any] = {
            "machine": {},
            "results": [],
            "throughput": [],
            "power": [],
            "telemetry": {
                "source": watch.source,
                "samples": len(samples),
                "load_average": [load, board.load_average()],
                "slowed": slowdowns(numbers, events, throttle_counts()),
                "numbers": numbers,
            },
        }
        drawn = [sample["watts"] for sample in samples if "watts" in sample]
        if drawn:
            report["machine"]["power_w"] = drawn_by(watch.source, drawn)
            for case, call in calls if plan.power_seconds else ():
                report["power"] += power_block(case, call, watch, plan.power_seconds, idle)
    for (case, _), rounds, totals in zip(calls, bare, whole, strict=True):
        for stage in rounds[0]:
            report["results"].append(row(case, stage, [ms[stage] for ms in rounds]))
        if totals:
            report["results"].append(row(case, DEFAULT, totals))
        mean = sum(ms["end_to_end"] for ms in rounds) / len(rounds)
        report["throughput"].append({**identity(case), "images_per_s": round(1e3 / mean, 2)})
    return report


def warm(calls: Prepared, plan: Plan) -> None:
    """Call every case in turn, bare and by default, as often and as long as the plan has it."""
    end, rounds = time.monotonic() + plan.warmup_seconds, 0
    while rounds < plan.warmup or time.monotonic() < end:
        for _, call in calls:
            call.bare()
            if plan.default:
                call.default()
        rounds += 1


def timed(calls: Prepared, plan: Plan) -> tuple[list[list[dict[str, float]]], list[list[float]]]:
    """Return the stages of each bare call of each case, and the milliseconds of each default one."""
    bare: list[list[dict[str, float]]] = [[] for _ in calls]
    whole: list[list[float]] = [[] for _ in calls]
    extent = f"{plan.runs} calls each" if plan.seconds is None else f"{plan.seconds:g} s"
    say(f"timing {len(calls)} cases, {extent}")
    end = None if plan.seconds is None else time.monotonic() + plan.seconds
    while len(bare[0]) < plan.runs if end is None else not bare[0] or time.monotonic() < end:
        for (_, call), rounds, totals in zip(calls, bare, whole, strict=True):
            time.sleep(PAUSE_S)
            rounds.append(call.bare())
            if plan.default:
                time.sleep(PAUSE_S)
                start = time.perf_counter()
                call.default()
                totals.append((time.perf_counter() - start) * 1e3)
    return bare, whole


def idle_watts(watch: Watch) -> float | None:
    """Return what the machine draws while nothing is called, None where nothing measures it."""
    if source() is None:
        return None
    start = time.monotonic()
    time.sleep(IDLE_S)
    found = [sample["watts"] for sample in watch.between(start, time.monotonic()) if "watts" in sample]
    return round(statistics.fmean(found), 3) if found else None


def drawn_by(name: str, watts: Sequence[float]) -> dict[str, Any]:
    """Return a span's power: the source, mean and most in watts, and the number of samples."""
    mean, most = round(statistics.fmean(watts), 2), round(max(watts), 2)
    return {"source": name, "mean": mean, "most": most, "samples": len(watts)}


def power_block(case: Case, call: Calls, watch: Watch, seconds: float, idle: float | None) -> list[dict[str, Any]]:
    """Call one case back to back for a while; return its row of power, none where no sample came.

    The first half second is left out: its sample is of what was before.
    """
    say(f"power of {case}")
    start, images = time.monotonic(), 0
    while time.monotonic() < start + seconds:
        call.bare()
        images += 1
    end = time.monotonic()
    watts = [sample["watts"] for sample in watch.between(start + INTERVAL_S, end) if "watts" in sample]
    if not watts:
        return []
    rate, drawn = images / (end - start), drawn_by(watch.source, watts)
    found = {
        **identity(case),
        **drawn,
        "images_per_s": round(rate, 2),
        "joules_per_image": round(drawn["mean"] / rate, 6),
    }
    above = None if idle is None else round((drawn["mean"] - idle) / rate, 6)
    return [{**found, "idle_w": idle, "joules_per_image_above_idle": above}]


def identity(case: Case) -> dict[str, str]:
    """Return the fields of a row that say which case it is."""
    return dict(zip(("model", "backend", "precision", "input", "frame"), case.key, strict=True))


def row(case: Case, stage: str, ms: Sequence[float]) -> dict[str, Any]:
    """Return a line of the report; below `LEAST_P99` calls there is no p99."""
    times: dict[str, float | None] = {f"{name}_ms": round(value, 3) for name, value in percentiles(ms).items()}
    if len(ms) < LEAST_P99:
        times["p99_ms"] = None
    first, last = fifths(ms)
    return {
        **identity(case),
        "stage": stage,
        **times,
        "runs": len(ms),
        "peak_mb": None,
        "device_mb": None,
        "least_ms": round(min(ms), 3),
        "first_fifth_ms": round(first, 3),
        "last_fifth_ms": round(last, 3),
    }


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
        found = json.loads(done.stdout.splitlines()[-1])
        for line in report["results"]:
            if line["stage"] == "end_to_end" and identity(case).items() <= line.items():
                line.update(found)


def facts(device: str, threads: int, measured: dict[str, Any]) -> dict[str, Any]:
    """Return facts of the machine and its load; its limits too where torch, which measures them, was needed anyway."""
    if "torch" in sys.modules:
        from ovsdino.benchmarks.lib.machine import machine_facts

        found = machine_facts(device)
    else:
        found = {"device": device, "cpu": board.cpu_name(), "threads": threads, **board.board_facts()}
    return {**found, **measured, "load_average": board.load_average(), "date": board.stamp()}
