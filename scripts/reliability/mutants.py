"""Read damaged files in processes of their own, with a limit on memory and time, so that a crash is counted.

    python -m scripts.reliability.mutants JOBS SEED REPORT

is such a process: it reads the mutants of JOBS and writes a line of JSON for each into REPORT.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovsdino.errors import OVSDinoError
from scripts.reliability.model_formats import FORMATS

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 3 << 30  # bytes of address space that a reader may take beyond what its imports take
SECONDS = 60  # after which a reader hangs
EXAMPLES = 5


@dataclass
class Count:
    """The outcomes of the mutants of a format."""

    mutants: int = 0
    refused: int = 0
    read: int = 0
    foreign: int = 0
    crashes: int = 0
    hangs: int = 0
    slowest_s: float = 0.0
    examples: list[str] = field(default_factory=list)

    def add(self, outcome: dict[str, Any], whole: bool) -> None:
        """Count one outcome; where every change must be refused, one that was read breaks the promise."""
        kind = outcome["kind"]
        self.mutants += 1
        setattr(self, kind, getattr(self, kind) + 1)
        self.slowest_s = max(self.slowest_s, outcome.get("seconds", 0.0))
        if (kind not in ("refused", "read") or (whole and kind == "read")) and len(self.examples) < EXAMPLES:
            self.examples.append(f"mutant {outcome['index']}: {outcome.get('said') or kind}")

    def kept(self, whole: bool) -> bool:
        """Return whether the format's promise was kept."""
        return not (self.foreign or self.crashes or self.hangs or (whole and self.read))


def read_mutants(jobs: list[tuple[str, int, int]], seed: int, report: Path) -> None:
    """Read the mutants of formats and write one outcome per line; the line before a crash says what was tried.

    Args:
        jobs: Format, first mutant, one past the last.
        seed: With the format's name and the mutant's number it decides the damage.
        report: File of JSON lines.
    """
    faulthandler.enable()
    os.environ["OVSDINO_OFFLINE"] = "1"
    with report.open("a", buffering=1) as lines, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # decoders in C talk
        for name, first, last in jobs:
            limit_memory(None)
            with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
                path, read = FORMATS[name].make(Path(folder))
                whole = path.read_bytes()
                read()  # what is not damaged is read
                limit_memory(MEMORY)
                for index in range(first, last):
                    rng = random.Random(f"{seed}:{name}:{index}")
                    mutant = FORMATS[name].damage(whole, rng)
                    if mutant == whole:
                        mutant = whole[:-1]
                    path.write_bytes(mutant)
                    lines.write(json.dumps({"format": name, "index": index}) + "\n")
                    faulthandler.dump_traceback_later(SECONDS, exit=True)
                    outcome = attempt(read)
                    faulthandler.cancel_dump_traceback_later()
                    lines.write(json.dumps({"format": name, "index": index, **outcome}) + "\n")


def attempt(read: Any) -> dict[str, Any]:
    """Read once; return the kind of outcome, the seconds of processor time, and the text of an unexpected error."""
    started = time.process_time()
    outcome: dict[str, Any] = {"kind": "read"}
    try:
        read()
    except OVSDinoError as error:
        outcome["kind"] = "refused"
        if "\n" in str(error):
            outcome |= {"kind": "foreign", "said": f"more than one line: {str(error)!r}"}
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)
        own = [f for f in frame if "/ovsdino/" in f.filename or "/deploy/" in f.filename]
        place = (own or frame)[-1]
        outcome |= {
            "kind": "foreign",
            "said": f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:150]!r}",
        }
    return outcome | {"seconds": round(time.process_time() - started, 3)}


def limit_memory(more: int | None) -> None:
    """Limit the address space to what is used now and some bytes more, or lift the limit."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = hard if more is None else pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def count_mutants(mutants: int, seed: int, formats: Sequence[str] | None = None) -> dict[str, Count]:
    """Share the mutants among the formats and read them in a process that is started again after a crash."""
    chosen = {name: one for name, one in FORMATS.items() if not formats or name in formats}
    total = sum(one.share for one in chosen.values())
    jobs = [(name, 0, max(1, round(mutants * one.share / total))) for name, one in chosen.items()]
    counts = {name: Count() for name in chosen}
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        while jobs:
            report, said = Path(folder, "report"), Path(folder, "said")
            report.unlink(missing_ok=True)
            command = [sys.executable, "-m", __name__, json.dumps(jobs), str(seed), str(report)]
            with said.open("wb") as errors:
                done = subprocess.run(command, stderr=errors, stdin=subprocess.DEVNULL, cwd=ROOT, check=False)
            code = done.returncode
            lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
            for line in lines:
                if "kind" in line:
                    counts[line["format"]].add(line, FORMATS[line["format"]].whole)
            tail = said.read_text(errors="replace")
            if code == 0:
                break
            if not lines or "kind" in lines[-1]:
                raise SystemExit(f"the reader's process failed between mutants ({code}): {tail[-2000:]}")
            last = lines[-1]
            counts[last["format"]].add(last | ending(code, tail), False)
            names = [name for name, *_ in jobs]
            jobs = jobs[names.index(last["format"]) :]
            jobs[0] = (jobs[0][0], last["index"] + 1, jobs[0][2])
    return counts


def ending(code: int, said: str) -> dict[str, Any]:
    """Return the outcome of a mutant with which the process ended."""
    if "Timeout (" in said:
        place = next((line.strip() for line in said.splitlines() if "/ovsdino/" in line or "/deploy/" in line), "")
        return {"kind": "hangs", "said": f"no end in {SECONDS} s: {place}"}
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return {"kind": "crashes", "said": f"{name}: {' '.join(said.split())[-200:]}"}


if __name__ == "__main__":
    read_mutants([tuple(job) for job in json.loads(sys.argv[1])], int(sys.argv[2]), Path(sys.argv[3]))
