"""Each op against its plain-PyTorch and library baselines, interleaved in one process, with the bound of the machine.

    python benchmarks/ops.py [--quick] [--json] [--output F] [--only OP...]

A row's ratio is baseline / ours of the medians; the least times are in `ours_least_ms` and `baseline_least_ms`, and the
load average of the machine in `load_average`. `strongest` is the baseline of the rows of the same case that ours is
ahead of by the least, `ratio_strongest`: the figure to quote. `floor` is the least ratio asked of a row, `bound_ms` the
larger of its least memory traffic at the measured bandwidth and its least arithmetic at the measured matrix rate of its
dtype. `extra_mb` is the peak memory beyond inputs and result. A GPU is used where torch sees one; there the
memory-bound ops have a second row whose baseline is the bound itself: its ratio is the share of the bound reached.

Freed memory stays with the process (`benchmarks.lib.memory.keep_freed`), so that no row pays for page faults by chance.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ovsdino.benchmarks.lib.board import load_average
from ovsdino.benchmarks.lib.machine import machine_facts
from ovsdino.benchmarks.lib.memory import extra_mb, keep_freed
from ovsdino.benchmarks.lib.op_cases import CASES, GPU_SHARE, Case, Setting
from ovsdino.benchmarks.lib.report import ReportOptions
from ovsdino.benchmarks.lib.timing import interleaved_samples
from ovsdino.console import say
from ovsdino.ops import use_backend
from ovsdino.parsing import run_script

OpName = Literal["upsample_argmax", "mask_pool", "structure_attention", "guided_upsample", "preprocess", "pipeline"]
OPS: tuple[OpName, ...] = get_args(OpName)
BOUND = "the bound: ratio is the share reached"


def measure(
    case: Case, facts: dict[str, Any], device: str, budget_s: float, gpu: bool, quick: bool
) -> Iterator[dict[str, Any]]:
    """Time one case; yield its row, and on a GPU the share of the bound as a second one."""
    with use_backend(case.backend):
        samples = interleaved_samples(
            [case.ours, case.baseline], device, inputs=case.inputs, least=2 if quick else 3, budget_s=budget_s
        )
    ours, baseline = (statistics.median(times) for times in samples)
    rate = facts["rates_gflops"].get(case.dtype, facts["gemm_gflops"])
    bound = max(case.bytes / (facts["bandwidth_gbs"] * 1e9), case.operations / (rate * 1e9)) * 1e3
    row = {
        "op": case.op,
        "case": case.case,
        "device": device,
        "dtype": case.dtype,
        "backend": case.backend,
        "baseline": case.baseline_name,
        "ours_ms": round(ours, 4),
        "baseline_ms": round(baseline, 4),
        "ratio": round(baseline / ours, 2),
        "floor": case.floor,
        "bound_ms": round(bound, 4),
        "ours_least_ms": round(min(samples[0]), 4),
        "baseline_least_ms": round(min(samples[1]), 4),
        "load_average": load_average(),
    }
    if case.rival:
        row |= {"rival": case.rival, "size": case.size, "gradient": case.gradient}
    if case.memory:
        with use_backend(case.backend):
            row["extra_mb"] = rounded(extra_mb(case.ours, case.inputs, device))
        row["baseline_extra_mb"] = rounded(extra_mb(case.baseline, case.inputs, device))
    yield row
    if gpu and case.share:
        share = {"baseline": BOUND, "baseline_ms": row["bound_ms"], "ratio": round(bound / ours, 2), "floor": GPU_SHARE}
        yield {**row, **share}


def rounded(megabytes: float | None) -> float | None:
    return None if megabytes is None else round(megabytes, 2)


def measured(
    setting: Setting,
    facts: dict[str, Any],
    budget_s: float,
    quick: bool,
    only: Sequence[str],
    keep: Callable[[dict[str, Any]], object] = lambda row: None,
) -> dict[str, Any]:
    """Return the report: rows, and the cases that could not run with the reason; `keep` gets each row at once."""
    report: dict[str, Any] = {"machine": facts, "results": [], "left_out": []}
    for op, cases in zip(OPS, CASES, strict=True):
        for case in cases(setting) if op in only else ():
            if quick and case.slow:
                continue
            try:
                rows = list(measure(case, facts, setting.device, budget_s, setting.gpu, quick))
            except Exception as error:  # a rival that has no kernel for this card; the others go on
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                name = {"op": case.op, "case": case.case, "baseline": case.baseline_name}
                report["left_out"].append({**name, "reason": reason})
                say(f"{case.op}, {case.case}, {case.baseline_name}: left out, {reason}")
                continue
            report["results"] += rows
            for row in rows:
                keep(row)
                say(f"{row['op']}, {row['case']}, {row['baseline']}: {row['ratio']:g} x")
    name_strongest(report["results"])
    return report


def name_strongest(rows: list[dict[str, Any]]) -> None:
    """Write `strongest` and `ratio_strongest` into each row: the rival of its case with the least ratio.

    Rows of one case have the same op, case, dtype, device and backend. The bound of the machine is not a rival.
    """
    cases: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(tuple(row[key] for key in ("op", "case", "dtype", "device", "backend")), []).append(row)
    for same in cases.values():
        strongest = min((row for row in same if row["baseline"] != BOUND), key=lambda row: row["ratio"])
        for row in same:
            row |= {"strongest": strongest["baseline"], "ratio_strongest": strongest["ratio"]}


def table(report: dict[str, Any]) -> str:
    """Return the report as a table of plain text."""
    facts = report["machine"]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in facts["rates_gflops"].items())
    lines = [
        f"{facts.get('gpu', facts['cpu'])}, {facts['threads']} threads, torch {facts['torch']}, "
        f"{facts['bandwidth_gbs']} GB/s, GFLOP/s: {rates}; * the strongest rival of its case",
        f"{'op':<20}{'case':<64}{'  against':<42}{'dtype':<10}{'ours ms':>10}{'baseline':>10}{'ratio':>8}{'floor':>7}"
        f"{'bound ms':>10}{'extra MB':>10}{'baseline':>10}",
    ]
    for row in report["results"]:
        floor = "" if row["floor"] is None else f"{row['floor']:g}"
        mark = "* " if row["baseline"] == row["strongest"] else "  "
        memory = "".join(f"{'' if row.get(x) is None else row[x]:>10}" for x in ("extra_mb", "baseline_extra_mb"))
        lines.append(
            f"{row['op']:<20}{row['case']:<64}{mark + row['baseline']:<42}{row['dtype']:<10}{row['ours_ms']:>10.3f}"
            f"{row['baseline_ms']:>10.3f}{row['ratio']:>8.2f}{floor:>7}{row['bound_ms']:>10.4f}{memory}"
        )
    lines += [f"left out: {row['op']}, {row['case']}, {row['baseline']}: {row['reason']}" for row in report["left_out"]]
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Ops(ReportOptions):
    """Time each op against its baselines; a missed floor is a figure, not an error."""

    quick: bool = False
    """Fewer repeats and cases: within 45 s on two cores."""
    only: tuple[OpName, ...] = OPS
    """Ops to measure."""
    seconds: float | None = None
    """Of each row. Default: 8 on a CPU, 0.15 on a GPU, less with --quick."""
    device: Literal["cpu", "cuda"] | None = None
    """Device of the ops. Default: CUDA if there is one."""
    rows: Path | None = None
    """Also add each row to this file as soon as it is measured, as a line of JSON."""

    def run(self) -> int:
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        keep_freed()
        facts, on_gpu = machine_facts(device), device == "cuda"
        budget_s = (0.05 if on_gpu else 0.7) if self.quick else (0.15 if on_gpu else 8.0)
        budget_s = self.seconds or budget_s
        setting = Setting(device=device, gpu=on_gpu)
        report = measured(setting, facts, budget_s, self.quick, self.only, self._keep)
        return self.publish(report, table)

    def _keep(self, row: dict[str, Any]) -> None:
        if self.rows is not None:
            with self.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    raise SystemExit(run_script(Ops, "ops.py"))
