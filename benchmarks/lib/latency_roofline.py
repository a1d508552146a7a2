"""The time of each network of latency.py, and the least that its device can do it in (`benchmarks/roofline.py`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ovsdino.benchmarks.lib.latency_cases import Case
from ovsdino.benchmarks.lib.latency_measure import identity
from ovsdino.benchmarks.lib.report import RESULTS

__all__ = ["roofline_rows", "device_name"]

HERE = "this machine, its measured rates"


def device_name(facts: Mapping[str, Any]) -> str | None:
    """Return the device of the roofline's tables that a machine is, None where it is none of them.

    Args:
        facts: See `board_facts`; ``gpu`` is torch's name of the card.
    """
    board, mode = str(facts.get("board", "")), str(facts.get("nvpmodel", ""))
    if "AGX Orin" in board:
        return "AGX Orin 64 GB"
    if "Orin NX" in board:
        return "Orin NX 16 GB Super" if "SUPER" in mode else "Orin NX 16 GB"
    if "Orin Nano" in board:
        return "Orin Nano Super"
    return "H200" if "H200" in str(facts.get("gpu", "")) else None


def roofline_rows(report: Mapping[str, Any], cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return a row for each case whose bound is known: the network's median, its bound, and what is to be expected.

    The network is `encode`, with `decode` where that is a stage of its own. The rates are those of the device's data
    sheet, and `expected_ms` is bound / 0.35; on other machines the rates are those that were measured here, in float32
    and bfloat16, and nothing is expected: 0.35 is a share that engines on Orin reach.

    Args:
        report: With ``machine`` and ``results``.
        cases: Those of the report.
    """
    facts, found = report["machine"], []
    name = device_name(facts)
    for case in cases:
        stages = {line["stage"]: line for line in report["results"] if identity(case).items() <= line.items()}
        network = sum(stages[stage]["p50_ms"] for stage in ("encode", "decode") if stage in stages)
        on_device = name is not None and (case.device == "cuda" or case.backend.startswith("tensorrt"))
        times = _listed(case, name) if on_device and name is not None else _measured(case, facts)
        if times is None:
            continue
        expected = times.get("expected_ms")
        found.append(
            {
                **identity(case),
                "device": name if on_device else HERE,
                "encode_ms": round(network, 3),
                "bound_ms": times["bound_ms"],
                "expected_ms": expected,
                "encode_over_bound": round(network / times["bound_ms"], 2),
                "encode_over_expected": None if expected is None else round(network / expected, 2),
            }
        )
    return found


def _listed(case: Case, name: str) -> dict[str, float] | None:
    """Return bound and expectation of a device of the tables; from the committed ones where there is no torch."""
    precision = {"float16": "float16", "bfloat16": "float16", "int8": "int8"}.get(case.precision)
    if precision is None:
        return None
    if "torch" in sys.modules:
        row = _row(case)
        return None if row is None else row.to_dict()["devices"][name][precision]
    rows = json.loads((RESULTS / "roofline.json").read_text(encoding="utf-8"))["results"]
    wanted = {"model": case.model, "height": case.size[0], "width": case.size[1]}
    return next((row["devices"][name][precision] for row in rows if wanted.items() <= row.items()), None)


def _measured(case: Case, facts: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the bound by the rates that were measured here, for the device that they were measured on."""
    rate = facts.get("rates_gflops", {}).get(case.precision)
    if rate is None or case.device != facts.get("device") or case.backend.startswith("tensorrt"):
        return None
    row = _row(case)
    if row is None:
        return None
    size = 2 if case.precision == "float32" else 1  # float16's bytes are those of 2 an element
    compute, memory = row.total.flops / rate / 1e6, row.megabytes("float16") * size / facts["bandwidth_gbs"]
    return {"bound_ms": round(max(compute, memory), 4)}


def _row(case: Case) -> Any:
    """Count the cost of a case's model; None for one that is not in the zoo, or cannot take the size."""
    from ovsdino.benchmarks.lib.roofline_rows import zoo_row
    from ovsdino.errors import OVSDinoError

    try:
        return zoo_row(case.model, *case.size, len(case.classes))
    except OVSDinoError:
        return None
