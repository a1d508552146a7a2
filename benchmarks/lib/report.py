"""A benchmark's report: one JSON object to print and to keep, and tables in pages. It needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovsdino.console import print_json
from ovsdino.io.files import atomic_write

__all__ = ["END", "RESULTS", "ROOT", "ReportOptions", "json_text", "placed", "save"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
END = "<!-- end -->"


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """The destinations of a report."""

    output: Path | None = None
    """Also write the JSON here."""
    json: bool = False
    """Print one JSON object on stdout."""

    def publish(self, report: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> int:
        """Write the report to --output, print it as JSON or as ``text`` gives it, and return the exit code 0."""
        if self.output is not None:
            save(self.output, json_text(report))
        if self.json:
            print_json(report)
        else:
            print(text(report))
        return 0


def json_text(report: dict[str, Any]) -> str:
    """Return a report as the text of a results file."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def save(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def placed(page: str, name: str, table: str) -> str:
    """Return a page with a table between its lines ``<!-- name -->`` and ``<!-- end -->``, in place of what was there.

    Raises:
        ValueError: The page has no such lines.
    """
    begin = f"<!-- {name} -->\n"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"the page has no lines {begin.strip()} and {END}")
    return "{}{}{}\n{}{}".format(head, begin, table.rstrip("\n"), END, tail)
