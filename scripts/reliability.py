"""Try what ovsdino promises of damaged files, killed processes and hostile settings; the same seed tries the same.

    python scripts/reliability.py                                    all parts, about half an hour on two cores
    python scripts/reliability.py --parts mutants --mutants 400      a small part of it, as the tests do

mutants   files of every format that is read, damaged: bits flipped, cut off, spliced, numbers and keys changed. The
          reader must read or raise `OVSDinoError`: no other exception, no crash, no hang, no memory without bound.
kills     processes killed while they write; what they leave is whole, and the next run goes on from it.
cases     hostile paths, settings and environments of the command line: one line and exit code 2, or what was asked.

Prints a table and writes --output. Readers run in processes of their own with a limit on memory and time, so that a
crash is counted and not suffered. Exit code 0: every promise was kept; 1: one was not, and the table says which.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "benchmarks" / "results" / "reliability.json"
PARTS = ("mutants", "kills", "cases")
MEMORY = 3 << 30  # bytes of address space that a reader may take beyond what its imports take
SECONDS = 60  # after which a reader hangs
EXAMPLES = 5


@dataclass
class Count:
    """What became of the mutants of a format."""

    mutants: int = 0
    refused: int = 0
    read: int = 0
    foreign: int = 0
    crashes: int = 0
    hangs: int = 0
    slowest_s: float = 0.0
    examples: list[str] = field(default_factory=list)

    def add(self, outcome: dict[str, Any], whole: bool) -> None:
        """Count one outcome; where every change must be refused, one that was read is a fault."""
        kind = outcome["kind"]
        self.mutants += 1
        setattr(self, kind, getattr(self, kind) + 1)
        self.slowest_s = max(self.slowest_s, outcome.get("seconds", 0.0))
        if (kind not in ("refused", "read") or (whole and kind == "read")) and len(self.examples) < EXAMPLES:
            self.examples.append(f"mutant {outcome['index']}: {outcome.get('said') or kind}")

    def kept(self, whole: bool) -> bool:
        """Return whether the format's promise was kept."""
        return not (self.foreign or self.crashes or self.hangs or (whole and self.read))


# -- the reader's process ------------------------------------------------------------------------------------------


def read_mutants(jobs: list[tuple[str, int, int]], seed: int, report: Path) -> None:
    """Read the mutants of formats, one outcome a line into `report`; the line before a crash says what was tried.

    Args:
        jobs: Format, first mutant, one past the last.
        seed: With the format's name and the mutant's number it decides the damage.
        report: File of JSON lines.
    """
    import faulthandler

    from reliability_models import FORMATS

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
    """Read once; return the kind of outcome, the seconds of processor time, and what an unexpected error said."""
    from ovsdino.errors import OVSDinoError

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


# -- the parent ----------------------------------------------------------------------------------------------------


def count_mutants(mutants: int, seed: int, formats: Sequence[str] | None = None) -> dict[str, Count]:
    """Share the mutants among the formats and read them in a process that is begun anew after a crash."""
    from reliability_models import FORMATS

    chosen = {name: one for name, one in FORMATS.items() if not formats or name in formats}
    total = sum(one.share for one in chosen.values())
    jobs = [(name, 0, max(1, round(mutants * one.share / total))) for name, one in chosen.items()]
    counts = {name: Count() for name in chosen}
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        while jobs:
            report, said = Path(folder, "report"), Path(folder, "said")
            report.unlink(missing_ok=True)
            command = [
                sys.executable,
                __file__,
                "--worker",
                json.dumps(jobs),
                "--seed",
                str(seed),
                "--report",
                str(report),
            ]
            with said.open("wb") as errors:
                code = subprocess.run(command, stderr=errors, stdin=subprocess.DEVNULL, check=False).returncode
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


def tried_table(outcomes: dict[str, Any], what: str) -> str:
    """Return the outcomes of kills or cases as a Markdown table."""
    rows = [f"| {what} | tried | not as promised |", "|---|---:|---:|"]
    rows += [f"| {name} | {one['tried']} | {len(one['broken'])} |" for name, one in outcomes.items()]
    return "\n".join(rows)


def page(text: str, found: dict[str, Any]) -> str:
    """Return a page with its tables between `<!-- PART -->` and `<!-- end -->` made anew from the results."""
    counts = {name: Count(**count) for name, count in found["mutants"].items()}
    for part, rows in (
        ("mutants", table(counts)),
        ("kills", tried_table(found["kills"], "killed at random times")),
        ("cases", tried_table(found["cases"], "kind")),
    ):
        head, _, rest = text.partition(f"<!-- {part} -->\n")
        text = f"{head}<!-- {part} -->\n{rows}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def table(counts: dict[str, Count]) -> str:
    """Return the counts as a Markdown table."""
    heads = ("mutants", "refused", "read", "foreign", "crashes", "hangs", "slowest_s")
    titles = ("mutants", "refused in one line", "read", "foreign exceptions", "crashes", "hangs", "slowest, s")
    rows = [f"| format | {' | '.join(titles)} |", f"|---|{'---:|' * len(heads)}"]
    total = Count()
    for name, count in counts.items():
        rows.append(f"| {name} | {' | '.join(f'{getattr(count, head):,}' for head in heads)} |")
        for head in heads[:-1]:
            setattr(total, head, getattr(total, head) + getattr(count, head))
        total.slowest_s = max(total.slowest_s, count.slowest_s)
    rows.append(f"| all | {' | '.join(f'{getattr(total, head):,}' for head in heads)} |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--mutants", type=int, default=50_000, help="of all formats together")
    parser.add_argument("--formats", nargs="+", help="only these")
    parser.add_argument("--kills", type=int, default=40, help="processes killed")
    parser.add_argument("--show", action="store_true", help="say of each case how it ended")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--page", type=Path, help="only write the tables of --output into this page")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        read_mutants([tuple(job) for job in json.loads(args.worker)], args.seed, args.report)
        return 0
    from ovsdino.io.files import atomic_write

    if args.page:
        text = page(args.page.read_text(encoding="utf-8"), json.loads(args.output.read_text(encoding="utf-8")))
        with atomic_write(args.page) as file:
            file.write(text.encode())
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    kept = True
    found: dict[str, Any] = {"seed": args.seed, "machine": platform.machine(), "python": platform.python_version()}
    if "mutants" in args.parts:
        from reliability_models import FORMATS

        counts = count_mutants(args.mutants, args.seed, args.formats)
        kept &= all(count.kept(FORMATS[name].whole) for name, count in counts.items())
        print(table(counts))
        for name, count in counts.items():
            for example in count.examples:
                print(f"{name}: {example}")
        found["mutants"] = {name: asdict(count) for name, count in counts.items()}
    if {"kills", "cases"} & set(args.parts):
        from reliability_cases import try_cases
        from reliability_faults import try_kills

        for part in ("kills", "cases"):
            if part not in args.parts:
                continue
            found[part] = try_kills(args.seed, args.kills) if part == "kills" else try_cases(args.show)
            for name, outcome in found[part].items():
                kept &= not outcome["broken"]
                print(f"{part}: {name}: {outcome['tried']} tried, {len(outcome['broken'])} not as promised")
                for line in outcome["broken"][:EXAMPLES]:
                    print(f"    {line}")
    with contextlib.suppress(FileNotFoundError):
        before = json.loads(args.output.read_text()) if args.output.suffix == ".json" else {}
        found = {**before, **found}
    with atomic_write(args.output) as file:
        file.write((json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    return 0 if kept else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    raise SystemExit(main())
