"""The report of latency.py as Markdown and as a plot."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write

STAGES = ("preprocess", "encode", "decode", "postprocess", "end_to_end")
COLUMNS = (
    *("model", "backend", "precision", "input", "preprocess", "encode", "decode", "postprocess"),
    *("end to end p50", "p95", "p99", "images/s", "peak MB"),
)
KEY = ("model", "backend", "precision", "input", "frame")
COLORS = {"preprocess": "#8da0cb", "encode": "#fc8d62", "decode": "#66c2a5", "postprocess": "#e78ac3"}


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the case of a row; reports of before have no `frame`."""
    return tuple(row.get(name, "rgb") for name in KEY)


def grouped(report: dict[str, Any]) -> dict[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Return the rows by case and stage, in the report's order."""
    found: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in report["results"]:
        found.setdefault(key_of(row), {})[row["stage"]] = row
    return found


def title(report: dict[str, Any]) -> str:
    """Return machine and task in a line."""
    facts = report["machine"]
    packages = "".join(f", {name} {version}" for name, version in facts.get("packages", {}).items())
    board = facts.get("board") or facts.get("gpu") or facts["cpu"]
    torch = f", torch {facts['torch']}" if "torch" in facts else ""
    mode = f", {facts['nvpmodel']}" if "nvpmodel" in facts else ""
    return (
        f"{board}{mode}, {facts['threads']} CPU threads{torch}{packages}; "
        f"image {report['image']['size']}, {report['classes']} classes; "
        f"load average of the machine afterwards {facts['load_average']}"
    )


def markdown(report: dict[str, Any]) -> str:
    """Return the tables of latency, power, roofline and shares; columns that no case fills are left out."""
    speed = {key_of(row): row["images_per_s"] for row in report["throughput"]}
    groups = grouped(report)
    more = {name: cells for name, cells in _more(groups).items() if any(cells)}
    columns = [*COLUMNS, *more]
    lines = [f"{title(report)}.", ""]
    doubts = [*report["machine"].get("doubts", []), *report.get("telemetry", {}).get("slowed", [])]
    lines += [*(f"Doubtful: {doubt}." for doubt in doubts), ""] if doubts else []
    lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for place, (key, stages) in enumerate(groups.items()):
        whole = stages["end_to_end"]
        cells = [*key[:4], *(_ms(stages.get(name), "p50_ms") for name in STAGES)]
        cells += [_ms(whole, "p95_ms"), _ms(whole, "p99_ms"), f"{speed[key]:.1f}"]
        cells.append("" if whole["peak_mb"] is None else f"{whole['peak_mb']:.0f}")
        lines.append(f"| {' | '.join([*cells, *(column[place] for column in more.values())])} |")
    power = report["machine"].get("power_w")
    if power:
        lines += ["", f"Power while timing, by {power['source']}: {power['mean']} W, at most {power['most']} W."]
    return "\n".join([*lines, *_power(report), *_roofline(report), *_shares(report)])


def _more(groups: dict[tuple[str, ...], dict[str, dict[str, Any]]]) -> dict[str, list[str]]:
    """Return columns that not every report has, a cell for each case; all empty where no case has one."""
    whole = [stages["end_to_end"] for stages in groups.values()]
    frames = [key[4] for key in groups]
    device = [row.get("device_mb") for row in whole]
    return {
        "frame": frames if set(frames) != {"rgb"} else [],
        "least": [f"{row['least_ms']:.1f}" if "least_ms" in row else "" for row in whole],
        "by default p50": [_ms(stages.get("default"), "p50_ms") for stages in groups.values()],
        "last fifth / first": [_drift(row) for row in whole],
        "device MB": ["" if value is None else f"{value:.0f}" for value in device],
    }


def _drift(row: dict[str, Any]) -> str:
    """Return by how much the last fifth of the calls took longer than the first."""
    return f"{row['last_fifth_ms'] / row['first_fifth_ms'] - 1:+.1%}" if "first_fifth_ms" in row else ""


def _power(report: dict[str, Any]) -> list[str]:
    if not report.get("power"):
        return []
    lines = [
        "",
        "| case, alone | watts | idle | images/s | joules an image | above idle |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["power"]:
        above = row["joules_per_image_above_idle"]
        cells = [" ".join(key_of(row)), f"{row['mean']:.2f}", "" if row["idle_w"] is None else f"{row['idle_w']:.2f}"]
        cells += [
            f"{row['images_per_s']:.1f}",
            f"{row['joules_per_image']:.3f}",
            "" if above is None else f"{above:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _roofline(report: dict[str, Any]) -> list[str]:
    if not report.get("roofline"):
        return []
    lines = ["", "| network | device | ms | bound | / bound | expected | / expected |", "|---|---|---|---|---|---|---|"]
    for row in report["roofline"]:
        known = row["expected_ms"] is not None
        cells = [" ".join(key_of(row)[:4]), row["device"], f"{row['encode_ms']:.2f}", f"{row['bound_ms']:.2f}"]
        cells += [f"{row['encode_over_bound']:.1f}", f"{row['expected_ms']:.2f}" if known else ""]
        cells.append(f"{row['encode_over_expected']:.2f}" if known else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _shares(report: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    keys = dict.fromkeys((row["model"], row["precision"], row["input"]) for row in report["shares"])
    for model, precision, size in keys:
        rows = [r for r in report["shares"] if (r["model"], r["precision"], r["input"]) == (model, precision, size)]
        lines += [
            "",
            f"{model} {precision} {size}, parts of PyTorch's run:",
            "",
            "| part | ms | share |",
            "|---|---|---|",
        ]
        names = {"ours": "SAE + SMD + refine + postprocess", "end_to_end": "end to end"}
        lines += [f"| {names.get(r['part'], r['part'])} | {r['p50_ms']:.1f} | {r['share']:.1%} |" for r in rows]
    return lines


def _ms(row: dict[str, Any] | None, field: str) -> str:
    return "" if row is None or row[field] is None else f"{row[field]:.1f}"


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be made, before anything is measured for it.

    Raises:
        OVSDinoError: Matplotlib is not installed, or the file type is unknown.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise OVSDinoError("--plot needs matplotlib: pip install 'ovsdino[probe]'")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise OVSDinoError(f"{path}: plots are .png, .svg or .pdf")


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the stages of each case as stacked bars, with a whisker from p50 to p95 end to end.

    Raises:
        OVSDinoError: See `check_plot`; or the file cannot be written.
    """
    from matplotlib.figure import Figure

    cases = grouped(report)
    figure = Figure(figsize=(9.0, 1.6 + 0.45 * len(cases)), layout="constrained")
    axes = figure.subplots()
    for place, stages in enumerate(cases.values()):
        left = 0.0
        for name, color in COLORS.items():
            if name in stages:
                width = stages[name]["p50_ms"]
                axes.barh(place, width, left=left, color=color, label=name if place == 0 or name == "decode" else None)
                left += width
        whole = stages["end_to_end"]
        axes.plot([whole["p50_ms"], whole["p95_ms"]], [place, place], "|-", color="black", linewidth=1)
    handles, labels = axes.get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    axes.legend(known.values(), known.keys(), fontsize=8, loc="lower right")
    axes.set_yticks(range(len(cases)), [" ".join(key[: 4 if key[4] == "rgb" else 5]) for key in cases], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("ms: median of each stage; line: end to end, p50 to p95")
    figure.suptitle(title(report), fontsize=8, wrap=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower()[1:], dpi=150)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
