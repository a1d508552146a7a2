"""The tables of the ops in README.md and docs/kernels.md and the results that they are made of."""

from __future__ import annotations

import json

from ovsdino.benchmarks.studies import op_tables


def test_the_tables_of_the_pages_are_those_of_the_results() -> None:
    readme, kernels = (path.read_text(encoding="utf-8") for path in (op_tables.README, op_tables.KERNELS))
    measured = [json.loads(path.read_text()) for path in (op_tables.RESULT, op_tables.NETWORKS)]
    assert op_tables.filled(readme, kernels, *measured) == (readme, kernels), (
        "run python benchmarks/studies/op_tables.py"
    )


def test_readme_quotes_the_ratio_to_the_strongest_rival_alone() -> None:
    row = {"op": "o", "case": "c", "dtype": "float32", "ours_ms": 2.0, "ours_least_ms": 1.5, "load_average": 2.0}
    row |= {"strongest": "fast", "ratio_strongest": 1.25, "floor": None}
    rows = [
        {**row, "baseline": "slow", "baseline_ms": 20.0, "baseline_least_ms": 19.0, "ratio": 10.0, "floor": 4.0},
        {**row, "baseline": "fast", "baseline_ms": 2.5, "baseline_least_ms": 2.25, "ratio": 1.25},
    ]
    facts = {"cpu": "this", "threads": 2, "torch": "2", "bandwidth_gbs": 10.0, "rates_gflops": {"float32": 100.0}}
    report = {"machine": facts, "results": rows, "left_out": [{**row, "baseline": "numba", "reason": "none here"}]}
    another = {**rows[1], "case": "d"}
    networks = [{"name": "nano", "words": "any", "gives": "labels", "ms": {"openvino 2": [1.5, 2.0]}}]
    networks.append({"name": "closed", "words": "80", "gives": "masks", "ms": {"openvino 2": [1.0, 1.0]}})
    networks.append({"name": "open", "words": "any", "gives": "masks", "ms": {"openvino 2": [1.0, 1.25]}})
    neighbors = {"side": 416, "words": 11, "results": networks}
    shown = op_tables.strongest({**report, "results": [*rows, another]}, neighbors)
    assert shown.splitlines()[2:] == [
        "| nano at 416×416, 11 words, OpenVINO | open (masks) | 2.00 (1.50) | 1.25 (1.00) | 0.62× |",
        "| `o` c, float32 | fast | 2.00 (1.50) | 2.50 (2.25) | 1.25× |",
    ]
    text = op_tables.everything(report)
    assert "| slow | 2.00 (1.50) | 20.0 (19.0) | 10.00× | 4× |" in text and "**fast**" in text
    assert "Left out: o, c, numba: none here." in text
