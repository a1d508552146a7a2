"""The tables of docs/edge.md and the results that they are made of."""

from __future__ import annotations

import json
from pathlib import Path

from ovsdino.benchmarks.studies import edge_tables


def test_the_tables_of_the_page_are_those_of_the_results() -> None:
    text = edge_tables.DOCUMENT.read_text(encoding="utf-8")
    assert edge_tables.filled(text) == text, "run python benchmarks/studies/edge_tables.py"


def test_a_missing_result_reads_not_measured(tmp_path: Path) -> None:
    text = edge_tables.filled(edge_tables.DOCUMENT.read_text(encoding="utf-8"), tmp_path)
    assert text.count("\nNot measured.\n") == 4
    rows = [{"name": "int8", "bytes": 9_000_000, "images": 3, "miou": 0.68, "boundary_f1": 0.6, "ms": 81.25}]
    facts = {"linears": 41, "kept": ["gate"], "alpha": 0.5, "method": "minmax", "percentile": None, "images": 32}
    report = {"size": "352x464", "quantised": facts, "sensitivity": None, "results": rows, "load_average": 0.5}
    report["results"][0]["label_agreement"] = 0.99912
    (tmp_path / "quantize_nano.json").write_text(json.dumps(report))
    text = edge_tables.filled(text, tmp_path)
    assert "| int8 | 9.00 | 0.6800 | 0.6000 | 0.9991 | 81.2 |" in text and text.count("\nNot measured.\n") == 3
