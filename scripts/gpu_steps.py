"""One step of the GPU check: a command in a process group of its own, its limit, and the folder of results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # where ovsdino is not installed

from ovsdino.io.files import atomic_write  # noqa: E402

STAGE = ROOT / "build" / "gpu-check"
LEAST_S = 5.0  # a step with less time left does not start
GRACE_S = 3.0  # from SIGTERM to SIGKILL

# Kills a group when the process that started it is gone, even by SIGKILL: its end of the pipe closes with it.
GUARD = "import os, sys\nif not sys.stdin.buffer.read():\n    os.killpg(int(sys.argv[1]), 9)"


@dataclass
class Step:
    """One step's outcome.

    Attributes:
        name: Of the step; its log is ``<name>.log``.
        status: passed, failed, timeout, interrupted or skipped.
        seconds: Its duration.
        note: One line for the table.
        details: What was found.
        sources: Digest of the sources that it ran on; ``--resume`` repeats a step of others.
    """

    name: str
    status: str
    seconds: float = 0.0
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    sources: str = ""


class Interruption:
    """A signal that ends the check: the steps that run are killed as a whole, and what is there is written.

    Attributes:
        signal: Its number, 0 before it came.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._running: set[subprocess.Popen[bytes]] = set()

    def install(self) -> None:
        """Take SIGINT, SIGTERM and SIGHUP of this process."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._arrived)

    def _arrived(self, number: int, _: object) -> None:
        self.signal = number
        for process in list(self._running):
            killed(process, signal.SIGTERM)

    def wait(self, process: subprocess.Popen[bytes], limit: float) -> int:
        """Return the exit code of a process that leads a group; nothing of the group is left afterwards.

        Raises:
            subprocess.TimeoutExpired: It ran longer than `limit` seconds.
        """
        self._running.add(process)
        end = time.monotonic() + limit
        try:
            if self.signal:  # it came while the process started
                killed(process, signal.SIGTERM)
            while True:
                left = min(end - time.monotonic(), GRACE_S)
                try:
                    return process.wait(max(left, 0))
                except subprocess.TimeoutExpired:
                    if self.signal or left <= 0:
                        raise
        finally:
            self._running.discard(process)
            if process.poll() is None:
                killed(process, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_S)
            killed(process, signal.SIGKILL)  # what ignored the first, and what a leader left behind
            process.wait()


def killed(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the group that a process leads, if there is any of it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


INTERRUPTION = Interruption()


def run(name: str, command: list[str], output: Path, limit: float, stdout: Path | None = None, **env: str) -> Step:
    """Run a command from the repository root, in a process group of its own that ends with it or at the limit.

    Args:
        name: the step's name; what the command prints goes to ``<output>/<name>.log``.
        command: program and arguments; a Python program imports the staged package.
        output: folder of the report.
        limit: seconds.
        stdout: a file for the standard output alone, in place of the log.
        env: environment variables on top of this process's own.

    Returns:
        The step, passed when the exit code is 0, with the log's text in ``details["text"]``.
    """
    log = output / f"{name}.log"
    print(f"== {name}", flush=True)
    if INTERRUPTION.signal:
        return Step(name, "interrupted", note="did not start", details={"text": ""})
    if limit < LEAST_S:
        return Step(name, "timeout", note="no time left", details={"text": ""})
    start = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(STAGE), "PYTHONUNBUFFERED": "1", **env}
    with log.open("w") as errors, (stdout or Path(os.devnull)).open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file if stdout else errors,
            stderr=errors,
            start_new_session=True,
        )
        guard = subprocess.Popen(
            [sys.executable, "-S", "-c", GUARD, str(process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            code = INTERRUPTION.wait(process, limit)
            status, note = ("passed", "") if code == 0 else ("failed", f"exit code {code}")
        except subprocess.TimeoutExpired:
            status, note = "timeout", f"longer than {limit:.0f} s"
        finally:
            guard.communicate(b"ended")
    if INTERRUPTION.signal:
        status, note = "interrupted", signal.Signals(INTERRUPTION.signal).name
    text = log.read_text(errors="replace")
    if status != "passed":
        print("\n".join(text.splitlines()[-40:]), flush=True)
    return Step(name, status, round(time.monotonic() - start, 1), note, {"text": text})


def together(
    jobs: Sequence[tuple[str, Callable[[float], Step]]], workers: int, left: Callable[[], float]
) -> Iterator[Step]:
    """Yield the steps of jobs as they end, so many at once; after a signal no other starts.

    Args:
        jobs: Names, and what makes a step in the seconds that it is given.
        workers: Jobs at once.
        left: Tells the seconds that are left.
    """
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(lambda job=job: job(left())) for _, job in jobs]
        for done in as_completed(running):
            if not done.cancelled():
                yield done.result()
            if INTERRUPTION.signal:
                for future in running:
                    future.cancel()


def report(facts: dict[str, Any], steps: list[Step]) -> str:
    """The outcome as Markdown: machine, steps, and a row a benchmark result."""
    lines = [f"# GPU check: {facts['gpu']}", "", ", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    lines += ["| step | status | seconds | note |", "|---|---|---|---|"]
    lines += [f"| {step.name} | {step.status} | {step.seconds} | {step.note} |" for step in steps]
    results = [row for step in steps for row in step.details.get("results", [])]
    if results:
        columns = list(dict.fromkeys(key for result in results for key in result))
        lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        for result in results:
            cells = (result.get(column) for column in columns)
            texts = ("" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
            lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def saved(output: Path) -> dict[str, Step]:
    """Return the steps that an output folder holds, by name."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        document = json.loads((output / "gpu_check.json").read_text())
        return {step["name"]: Step(**step) for step in document["steps"]}
    return {}


def save(facts: dict[str, Any], steps: list[Step], output: Path) -> str:
    """Write the JSON, the table, and the tar of the folder.

    Args:
        facts: Of the machine.
        steps: This run's; of earlier runs into the folder those stay that it has not.
        output: The folder.

    Returns:
        The table.
    """
    listed = list((saved(output) | {step.name: step for step in steps}).values())
    passed = all(step.status in ("passed", "skipped") for step in listed)
    document = {"machine": facts, "passed": passed, "steps": [asdict(step) for step in listed]}
    for path, text in (
        (output / "gpu_check.json", json.dumps(document, indent=2) + "\n"),
        (output / "gpu_check.md", report(facts, listed)),
    ):
        with atomic_write(path) as file:
            file.write(text.encode())
    pack(output)
    return report(facts, listed)


def pack(output: Path) -> None:
    """Write ``results.tar.gz``: every log, JSON, table and row of the folder in one file to carry away."""
    kept = sorted(path for path in output.iterdir() if path.suffix in (".json", ".jsonl", ".md", ".log"))
    with atomic_write(output / "results.tar.gz") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
        for path in kept:
            tar.add(path, f"{output.name}/{path.name}")
