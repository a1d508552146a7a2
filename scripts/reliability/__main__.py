"""Try the promises of ovsdino for damaged files, killed processes and hostile settings.

    python -m scripts.reliability                                    all parts, about half an hour on two cores
    python -m scripts.reliability --parts mutants --mutants 400      a small part of it, as the tests do

mutants   files of every format that is read, damaged: bits flipped, cut off, spliced, numbers and keys changed. The
          reader must read or raise `OVSDinoError`: no other exception, no crash, no hang, no memory without bound.
kills     processes killed while they write; their files are whole, and the next run goes on from them.
cases     hostile paths, settings and environments of the command line: one line and exit code 2, or the result.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ovsdino.benchmarks.lib.report import RESULTS, json_text, save
from ovsdino.parsing import run_script

EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Try the promises for damaged files, killed processes and hostile settings; the same seed tries the same.

    Prints a table and writes --output. The exit code is 0 where every promise was kept, and 1 where one was not.
    """

    parts: tuple[Literal["mutants", "kills", "cases"], ...] = ("mutants", "kills", "cases")
    """Parts to try."""
    mutants: int = 50_000
    """Damaged files of all formats together."""
    formats: tuple[str, ...] = ()
    """Only these formats."""
    kills: int = 40
    """Processes killed."""
    show: bool = False
    """Print the end of each case."""
    seed: int = 0
    """Seed of the damage and of the times of the kills."""
    output: Path = RESULTS / "reliability.json"
    """JSON file; the parts that are not tried stay as they are in it."""
    page: Path | None = None
    """Only write the tables of --output into this page."""

    def run(self) -> int:
        if self.page is not None:
            from scripts.reliability.page import page

            save(self.page, page(self.page.read_text(encoding="utf-8"), json.loads(self.output.read_text())))
            return 0
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        tried: dict[str, Callable[[], tuple[Any, bool]]] = {
            "mutants": self._mutants,
            "kills": self._kills,
            "cases": self._cases,
        }
        found: dict[str, Any] = {"seed": self.seed, "machine": platform.machine(), "python": platform.python_version()}
        kept = True
        for part in tried:
            if part in self.parts:
                found[part], well = tried[part]()
                kept &= well
        with contextlib.suppress(FileNotFoundError):
            found = {**json.loads(self.output.read_text()), **found}
        save(self.output, json_text(found))
        return 0 if kept else 1

    def _mutants(self) -> tuple[Any, bool]:
        from scripts.reliability.mutants import FORMATS, count_mutants
        from scripts.reliability.page import mutants_table

        counts = count_mutants(self.mutants, self.seed, self.formats)
        print(mutants_table(counts))
        for name, count in counts.items():
            for example in count.examples:
                print(f"{name}: {example}")
        kept = all(count.kept(FORMATS[name].whole) for name, count in counts.items())
        return {name: asdict(count) for name, count in counts.items()}, kept

    def _kills(self) -> tuple[Any, bool]:
        from scripts.reliability.kills import try_kills

        return told("kills", try_kills(self.seed, self.kills))

    def _cases(self) -> tuple[Any, bool]:
        from scripts.reliability.cases import try_cases

        return told("cases", try_cases(self.show))


def told(part: str, outcomes: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Print outcomes; return them, and whether every promise was kept."""
    for name, outcome in outcomes.items():
        print(f"{part}: {name}: {outcome['tried']} tried, {len(outcome['broken'])} not as promised")
        for line in outcome["broken"][:EXAMPLES]:
            print(f"    {line}")
    return outcomes, not any(outcome["broken"] for outcome in outcomes.values())


if __name__ == "__main__":
    raise SystemExit(run_script(Reliability, "python -m scripts.reliability"))
