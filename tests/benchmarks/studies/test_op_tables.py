"""The tables of the ops in README.md and docs/kernels.md and the results that they are made of."""

from __future__ import annotations

import json

from ovsdino.benchmarks.studies import op_tables


def test_the_tables_of_the_pages_are_those_of_the_results() -> None:
    readme, kernels = (path.read_text(encoding="utf-8") for path in (op_tables.README, op_tables.KERNELS))
    report = json.loads(op_tables.RESULT.read_text())
    assert op_tables.filled(readme, kernels, report) == (readme, kernels), "run python benchmarks/studies/op_tables.py"


def test_readme_quotes_the_ratio_to_the_strongest_rival_alone() -> None:
    row = {"op": "o", "case": "c", "dtype": "float32", "ours_ms": 2.0, "ours_least_ms": 1.5, "load_average": 2.0}
    row |= {"strongest": "fast", "ratio_strongest": 1.25, "floor": None}
    rows = [
        {**row, "baseline": "slow", "baseline_ms": 20.0, "baseline_least_ms": 19.0, "ratio": 10.0, "floor": 4.0},
        {**row, "baseline": "fast", "baseline_ms": 2.5, "baseline_least_ms": 2.25, "ratio": 1.25},
    ]
    facts = {"cpu": "this", "threads": 2, "torch": "2", "bandwidth_gbs": 10.0, "rates_gflops": {"float32": 100.0}}
    report = {"machine": facts, "results": rows, "left_out": [{**row, "baseline": "numba", "reason": "none here"}]}
    line = "| `o` c, float32 | fast | 2.00 (1.50) | 2.50 (2.25) | 1.25× | – |"
    assert line in op_tables.strongest(report) and "slow" not in op_tables.strongest(report)
    text = op_tables.everything(report)
    assert "| slow | 2.00 (1.50) | 20.0 (19.0) | 10.00× | 4× |" in text and "**fast**" in text
    assert "Left out: o, c, numba: none here." in text
