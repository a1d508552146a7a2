"""Puts the tables of docs/edge.md between their markers, from the files in benchmarks/results.

python benchmarks/studies/edge_tables.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ovsdino.benchmarks.lib.latency_report import markdown
from ovsdino.deploy.quantization.report import score_table
from ovsdino.io.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
RESULTS, DOCUMENT = ROOT / "benchmarks" / "results", ROOT / "docs" / "edge.md"
END = "<!-- end -->"


def quantisation(report: dict[str, Any]) -> str:
    """What int8 costs: quantize.py's --json."""
    facts, rows = report["quantised"], report["results"]
    worst = ", ".join(f"`{row['linear']}` {row['error']:.4f}" for row in (report["sensitivity"] or [])[:5])
    method = f"percentile {facts['percentile']}" if facts["method"] == "percentile" else facts["method"]
    lines = [
        f"nano at {report['size']}, {rows[0]['images']} images; {facts['linears']} linears in int8, "
        f"{len(facts['kept'])} in float; {facts['images']} calibration images, {method}, alpha {facts['alpha']}; load "
        f"average of the machine afterwards {report['load_average']}.",
        "",
        *score_table(rows),
    ]
    if worst:
        lines += ["", f"Most sensitive, each alone in int8, by the relative change of the logits: {worst}."]
    return "\n".join(lines)


TABLES = {"latency_cpu.json": markdown, "latency_b14_cpu.json": markdown, "quantize_nano.json": quantisation}


def filled(text: str, results: Path = RESULTS) -> str:
    """The document with its tables made anew; one whose file is missing says so."""
    for name, table in TABLES.items():
        begin = f"<!-- {name} -->"
        head, rest = text.split(begin, 1)
        path = results / name
        body = table(json.loads(path.read_text())) if path.exists() else "Not measured."
        text = f"{head}{begin}\n{body}\n{END}{rest.split(END, 1)[1]}"
    return text


def main() -> int:
    """Rewrites the document."""
    text = filled(DOCUMENT.read_text(encoding="utf-8"))
    with atomic_write(DOCUMENT) as file:
        file.write(text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
