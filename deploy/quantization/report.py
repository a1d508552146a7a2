"""The report of a quantization as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["markdown", "score_table"]


def markdown(report: dict[str, Any]) -> str:
    """Return the report as one sentence and tables."""
    facts, verified = report["quantised"], report["verified"]
    lines = [
        f"{report['output']}: {report['bytes'] / 1e6:.2f} MB, {facts['linears']} linears in int8, "
        f"{len(facts['kept'])} in float, {facts['convolutions']} convolutions in int8; on {verified['images']} "
        f"calibration images cosine {verified['cosine']:.5f}, label agreement {verified['label_agreement']:.4f}."
    ]
    if report["sensitivity"]:
        lines += ["", "| linear, alone in int8 | change of the logits | label agreement |", "|---|---|---|"]
        for row in report["sensitivity"]:
            lines.append(f"| {row['linear']} | {row['error']:.5f} | {row['label_agreement']:.5f} |")
    if report["results"]:
        lines += ["", *score_table(report["results"])]
    return "\n".join(lines)


def score_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the Markdown lines of `score`'s rows."""
    lines = ["| graph | MB | mIoU | boundary F1 | label agreement | ms |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['bytes'] / 1e6:.2f} | {row['miou']:.4f} | {row['boundary_f1']:.4f} | "
            f"{row['label_agreement']:.4f} | {row['ms']:.1f} |"
        )
    return lines
