"""The tables of roofline.md and docs/jetson.md."""

from __future__ import annotations

from collections.abc import Sequence

from ovsdino.benchmarks.lib.roofline_rows import DEVICES, EFFICIENCY, Device, Row

__all__ = ["expected_table", "markdown"]


def markdown(plain: Sequence[Row], zoo: Sequence[Row]) -> str:
    """Return the tables of roofline.md."""
    lines = ["| device | float16 TFLOPS | INT8 TOPS | GB/s | from |", "|---|---|---|---|---|"]
    lines += [
        f"| {d.name} | {d.float16_tflops:.1f} | {d.int8_tops:.1f} | {d.bandwidth_gbs:g} | {d.source} |" for d in DEVICES
    ]
    lines += [
        "",
        "### The transformer alone: FLOPs over peak, ms, float16 / INT8 linear layers with float16 attention",
        "",
    ]
    lines += ["| | N | GFLOP | " + " | ".join(d.name for d in DEVICES) + " |", "|---" * (3 + len(DEVICES)) + "|"]
    for row in plain:
        cells = [compute_cell(row, device) for device in DEVICES]
        lines.append(f"| {label(row)} | {row.tokens} | {row.total.flops / 1e9:.0f} | " + " | ".join(cells) + " |")
    lines += ["", "### The zoo's models whole", ""]
    names = ("backbone", "sae", "smd", "logits")
    lines += [
        "| | classes | M parameters | GFLOP | backbone | SAE | SMD | logits, refinement | MB moved, float16 / INT8 |"
    ]
    lines += ["|---" * 9 + "|"]
    for row in zoo:
        parts = [f"{row.parts[name].flops / 1e9:.2f}" for name in names]
        moved = " / ".join(f"{row.megabytes(precision):.0f}" for precision in ("float16", "int8"))
        lines.append(
            f"| {label(row)} | {row.classes} | {sum(row.weights) / 1e6:.1f} | {row.total.flops / 1e9:.1f} | "
            + " | ".join(parts)
            + f" | {moved} |"
        )
    lines += ["", f"### The zoo's models on Orin: ms expected (bound / {EFFICIENCY}), float16 / INT8 linear layers", ""]
    return "\n".join([*lines, expected_table(zoo)])


def expected_table(zoo: Sequence[Row]) -> str:
    """Return the table of the zoo's models on Orin: ms expected of the graph."""
    orins = [device for device in DEVICES if device.name != "H200"]
    lines = ["| | " + " | ".join(d.name for d in orins) + " |", "|---" * (1 + len(orins)) + "|"]
    for row in zoo:
        cells = [
            " / ".join(expected_cell(row, device, precision) for precision in ("float16", "int8")) for device in orins
        ]
        lines.append(f"| {label(row)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "`m`: the bound is memory and not arithmetic.", ""])


def label(row: Row) -> str:
    return f"{row.model} {row.height}×{row.width}"


def compute_cell(row: Row, device: Device) -> str:
    digits = 2 if device.name == "H200" else 1
    return " / ".join(f"{row.on(device)[precision]['compute_ms']:.{digits}f}" for precision in ("float16", "int8"))


def expected_cell(row: Row, device: Device, precision: str) -> str:
    times = row.on(device)[precision]
    return f"{times['expected_ms']:.1f}" + ("m" if times["memory_ms"] > times["compute_ms"] else "")
