"""Put the tables of speed on a CPU between their markers in README.md and docs/kernels.md.

They are made from `ops_cpu.json`, and README's first rows from `neighbors.json`.

python benchmarks/studies/op_tables.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ovsdino.benchmarks.lib.report import RESULTS, ROOT, placed, save
from ovsdino.parsing import run_script

RESULT, NETWORKS = RESULTS / "ops_cpu.json", RESULTS / "neighbors.json"
README, KERNELS = ROOT / "README.md", ROOT / "docs" / "kernels.md"
STRONGEST, ALL = "the ops against their strongest rivals", "the ops against all rivals"
HEADERS = ("op", "against", "ours, ms", "theirs, ms", "ratio", "floor")


def case_of(row: dict[str, Any]) -> str:
    return f"`{row['op']}` {row['case']}, {row['dtype']}"


def figure(ms: float) -> str:
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def least(ms: float | None) -> str:
    return "" if ms is None else f" ({figure(ms)})"


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row's cells under `HEADERS`: each time is the median, with the least in brackets where it is known."""
    times = [f"{figure(row[f'{side}_ms'])}{least(row[f'{side}_least_ms'])}" for side in ("ours", "baseline")]
    floor = "–" if row["floor"] is None else f"{row['floor']:g}×"
    return [case_of(row), row["baseline"], *times, f"{row['ratio']:.2f}×", floor]


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headers) + " |", "|---" * len(headers) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def networks(neighbors: dict[str, Any], runtime: str = "openvino 2") -> list[list[str]]:
    """Return README's rows of nano against the networks that take any word: an image in memory to labels or masks."""
    by_name = {row["name"]: row for row in neighbors["results"]}
    ours = by_name.pop("nano")
    (own_least, own_median), rows = ours["ms"][runtime], []
    for row in by_name.values():
        if row["words"] == ours["words"]:
            best, median = row["ms"][runtime]
            case = f"nano at {neighbors['side']}×{neighbors['side']}, {neighbors['words']} words, OpenVINO"
            times = [f"{figure(own_median)}{least(own_least)}", f"{figure(median)}{least(best)}"]
            rows.append([case, f"{row['name']} ({row['gives']})", *times, f"{median / own_median:.2f}×"])
    return rows


def machine(report: dict[str, Any]) -> str:
    """Return the line above a table: where the rows were measured, and at what load."""
    facts, loads = report["machine"], [x for row in report["results"] if (x := row["load_average"]) is not None]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in facts["rates_gflops"].items())
    return (
        f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}, {facts['bandwidth_gbs']} GB/s copied, "
        f"GFLOP/s {rates}; load average {min(loads):.1f} to {max(loads):.1f}, this benchmark's own threads in it. "
        "Medians, the least in brackets."
    )


def strongest(report: dict[str, Any], neighbors: dict[str, Any]) -> str:
    """Return README's table: nano against its neighbors, and of each op the first case against its strongest rival."""
    first: dict[str, dict[str, Any]] = {}
    for row in report["results"]:
        if row["baseline"] == row["strongest"]:
            first.setdefault(row["op"], row)
    headers = ("two CPU cores", *HEADERS[1:-1])
    return markdown(headers, [*networks(neighbors), *(cells(row)[:-1] for row in first.values())])


def everything(report: dict[str, Any]) -> str:
    """Return the table of docs/kernels.md: all rows, the strongest rival of a case in bold, with the peak memory."""
    rows = []
    for row in report["results"]:
        memory = [row.get("extra_mb"), row.get("baseline_extra_mb")]
        shown = " / ".join("–" if value is None else f"{value:.4g}" for value in memory) if any(memory) else ""
        one = cells(row)
        one[1] = f"**{one[1]}**" if row["baseline"] == row["strongest"] else one[1]
        rows.append([*one, shown])
    table = markdown((*HEADERS, "extra memory, MB, ours / theirs"), rows)
    left_out = [f"{row['op']}, {row['case']}, {row['baseline']}: {row['reason']}" for row in report["left_out"]]
    return "\n".join(
        [machine(report), "", table, *(["", "Left out: " + "; ".join(left_out) + "."] if left_out else [])]
    )


def filled(readme: str, kernels: str, report: dict[str, Any], neighbors: dict[str, Any]) -> tuple[str, str]:
    """Return both pages with their tables made anew."""
    return placed(readme, STRONGEST, strongest(report, neighbors)), placed(kernels, ALL, everything(report))


@dataclass(frozen=True, kw_only=True)
class OpTables:
    """Write the tables of speed from benchmarks/results/ops_cpu.json and neighbors.json."""

    def run(self) -> int:
        pages = (README, KERNELS)
        readme, kernels = (path.read_text(encoding="utf-8") for path in pages)
        measured = (json.loads(path.read_text()) for path in (RESULT, NETWORKS))
        for path, text in zip(pages, filled(readme, kernels, *measured), strict=True):
            save(path, text)
        return 0


if __name__ == "__main__":
    raise SystemExit(run_script(OpTables, "op_tables.py"))
