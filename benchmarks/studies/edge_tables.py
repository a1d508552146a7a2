"""Put the tables of docs/edge.md between their markers, from the files in benchmarks/results.

python benchmarks/studies/edge_tables.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovsdino.benchmarks.lib.latency_report import markdown
from ovsdino.benchmarks.lib.report import RESULTS, ROOT, placed, save
from ovsdino.benchmarks.studies import cpu_backends, neighbors
from ovsdino.deploy.quantization.report import score_table
from ovsdino.parsing import run_script

DOCUMENT = ROOT / "docs" / "edge.md"


def quantization(report: dict[str, Any]) -> str:
    """Return the table of the cost of int8, from the JSON of deploy/quantize.py."""
    facts, rows = report["quantised"], report["results"]
    worst = ", ".join(f"`{row['linear']}` {row['error']:.4f}" for row in (report["sensitivity"] or [])[:5])
    method = f"percentile {facts['percentile']}" if facts["method"] == "percentile" else facts["method"]
    lines = [
        f"nano at {report['size']}, {rows[0]['images']} images; {facts['linears']} linears in int8, "
        f"{len(facts['kept'])} in float, {facts.get('convolutions', 0)} convolutions in int8; {facts['images']} "
        f"calibration images, {method}, alpha {facts['alpha']}; load average of the machine afterwards "
        f"{report['load_average']}.",
        "",
        *score_table(rows),
    ]
    if worst:
        lines += ["", f"Most sensitive, each alone in int8, by the relative change of the logits: {worst}."]
    return "\n".join(lines)


TABLES = {
    "cpu_backends.json": cpu_backends.markdown,
    "latency_b14_cpu.json": markdown,
    "neighbors.json": neighbors.markdown,
    "quantize_nano.json": quantization,
}


def filled(text: str, results: Path = RESULTS) -> str:
    """Return the document with its tables made anew; one whose file is missing says so."""
    for name, table in TABLES.items():
        path = results / name
        text = placed(text, name, table(json.loads(path.read_text())) if path.exists() else "Not measured.")
    return text


@dataclass(frozen=True, kw_only=True)
class EdgeTables:
    """Write the tables of docs/edge.md from benchmarks/results."""

    def run(self) -> int:
        save(DOCUMENT, filled(DOCUMENT.read_text(encoding="utf-8")))
        return 0


if __name__ == "__main__":
    raise SystemExit(run_script(EdgeTables, "edge_tables.py"))
