"""Check everything on a CUDA machine: build, GPU tests, op benchmarks, the table of backends, compute-sanitizer.

    python scripts/gpu_check.py --output outputs/gpu-check                        all parts
    python scripts/gpu_check.py --output D --parts build tests --limit 570        one part after the other, where a
    python scripts/gpu_check.py --output D --parts benchmarks table --limit 570   command may take ten minutes; the
    python scripts/gpu_check.py --output D --parts sanitizer --limit 570          later ones use the first one's build

Needs torch, triton, timm, numpy and pytest, plus nvcc, cmake, ninja and pybind11 to build; no network, and no
installation of ovsdino: the sources and the fresh module are laid out in ``build/gpu-check`` and imported from there.
A part that fails stops no other; ``gpu_check.json``, the table ``gpu_check.md`` and a log a step are written after each
step, and hold the latest outcome of every step of that output folder. Exit code 0: all of this run passed; 1: a step
failed; 2: this machine cannot run the check, said in one line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import build_native

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # where ovsdino is not installed

from ovsdino.io.files import atomic_write  # noqa: E402

STAGE = ROOT / "build" / "gpu-check"
TABLE = ROOT / "ovsdino" / "ops" / "measured.json"
OPS = ("structure_attention", "mask_pool", "upsample_argmax", "guided_upsample", "preprocess")
PARTS = ("build", "tests", "benchmarks", "table", "sanitizer")
# Not initcheck: it does not watch torch's kernels, and takes what they wrote for memory that nobody did.
SANITIZERS = ("memcheck", "racecheck", "synccheck")
TESTS = ("tests/ops", "tests/test_pipeline.py")
# Of the common suite: each kernel of ours on odd and strided shapes, forward and backward. A tool slows a kernel 10 to
# 100 times, so the rest is left to the tests.
SANITIZED = ("tests/ops/test_contract.py", "-k", "(-cuda-cuda- or -triton-cuda-) and (error or strided) and not shape")

# `python -m pytest` would import ovsdino from the working folder, where the mapped packages are missing: it goes last.
PYTEST = """
import sys
sys.path[:] = [entry for entry in sys.path if entry] + [sys.argv.pop(1)]
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@dataclass
class Step:
    """One step's outcome: ``status`` is passed, failed, timeout or skipped; ``note`` one line for the table."""

    name: str
    status: str
    seconds: float = 0.0
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def machine() -> dict[str, Any] | None:
    """Return what this machine is, or None where torch sees no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    driver = _answer(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()
    nvcc = build_native.find_nvcc()
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": driver[0] if driver else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvcc": next((word for word in _answer([nvcc, "--version"]).split() if word.startswith("V")), None)
        if nvcc
        else None,
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count(),
    }


def _answer(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def run(name: str, command: list[str], output: Path, limit: float, stdout: Path | None = None, **env: str) -> Step:
    """Run a command from the repository root under a time limit.

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
    if limit < 5:
        return Step(name, "timeout", note="no time left", details={"text": ""})
    start = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(STAGE), **env}
    with log.open("w") as errors, (stdout or Path(os.devnull)).open("w") as file:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=file if stdout else errors,
                stderr=errors,
                timeout=limit,
                check=False,
            ).returncode
            status, note = ("passed", "") if code == 0 else ("failed", f"exit code {code}")
        except subprocess.TimeoutExpired:
            status, note = "timeout", f"longer than {limit:.0f} s"
    text = log.read_text(errors="replace")
    if status != "passed":
        print("\n".join(text.splitlines()[-40:]), flush=True)
    return Step(name, status, round(time.monotonic() - start, 1), note, {"text": text})


def stage_package() -> None:
    """Lay the package out as an install would: links to the sources and the two mapped folders; a module stays."""
    package = STAGE / "ovsdino"
    package.mkdir(parents=True, exist_ok=True)
    for child in package.iterdir():
        if child.is_symlink():
            child.unlink()
    for child in (ROOT / "ovsdino").iterdir():
        if child.suffix != ".so" and child.name != "__pycache__":
            (package / child.name).symlink_to(child)
    (package / "kernels").symlink_to(ROOT / "kernels" / "triton")
    (package / "deploy").symlink_to(ROOT / "deploy")
    (package / "benchmarks").symlink_to(ROOT / "benchmarks")


def build_step(capability: str, output: Path, limit: float) -> Step:
    """Build the module for this GPU alone, unless OVSDINO_CUDA_ARCHS asks for more."""
    archs = os.environ.get("OVSDINO_CUDA_ARCHS") or capability.replace(".", "")
    for old in (STAGE / "ovsdino").glob("_C*"):
        old.unlink()
    command = [sys.executable, str(ROOT / "scripts" / "build_native.py"), "--output", str(STAGE / "ovsdino")]
    step = run("build", command, output, limit, OVSDINO_CUDA="1", OVSDINO_CUDA_ARCHS=archs)
    text = step.details.pop("text")
    step.details["archs"] = archs
    if step.status == "passed" and not list((STAGE / "ovsdino").glob("_C*")):
        step.status = "failed"
    if step.status == "passed":
        step.note = f"SM {archs}"
    elif text.strip():
        step.note = text.strip().splitlines()[-1]
    return step


def pytest_command(marker: str, *arguments: str) -> list[str]:
    """The command that runs the tests a marker expression selects, importing the staged package."""
    options = ["-q", "-m", marker, "-p", "no:cacheprovider", "-o", "pythonpath=", *arguments]
    return [sys.executable, "-c", PYTEST, str(ROOT), *options]


def tests_step(output: Path, limit: float, paths: Sequence[str] = TESTS) -> Step:
    """Run every test marked gpu; none at all is a failure, since nothing would have been checked."""
    report = output / "pytest.xml"
    report.unlink(missing_ok=True)
    step = run("tests", pytest_command("gpu", f"--junitxml={report}", *paths), output, limit)
    del step.details["text"]
    if report.is_file():
        suite = next(ElementTree.parse(report).iter("testsuite"))
        counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        step.details.update(counts)
        step.note = ", ".join(f"{count} {key}" for key, count in counts.items())
        if counts["tests"] - counts["skipped"] <= 0:
            step.status, step.note = "failed", f"no GPU test ran ({step.note})"
    return step


def sanitizer_step(name: str, output: Path, kernels: str, limit: float, tests: Sequence[str] = SANITIZED) -> Step:
    """Run one tool of compute-sanitizer over the quick GPU tests, looking at our own kernels only, Triton's too."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")
    if tool is None:
        return Step(f"sanitizer-{name}", "skipped", note="compute-sanitizer is not on PATH, nor below CUDA_HOME")
    command = [tool, "--tool", name, "--error-exitcode", "99", "--kernel-name", f"kernel_substring={kernels}"]
    command += ["--target-processes", "application-only", "--print-limit", "20"]
    if name == "memcheck":
        command += ["--report-api-errors", "no"]  # torch probes for features by calls that may fail
    command += pytest_command("gpu and not slow", *tests)
    # Each tensor an allocation of its own, else an access past one lands unseen in the caching allocator's block.
    step = run(f"sanitizer-{name}", command, output, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    text = step.details.pop("text")
    summary = [line.strip("= \n") for line in text.splitlines() if "SUMMARY" in line]
    counts = [line for line in text.splitlines() if " passed" in line or " failed" in line or " skipped" in line]
    step.note = "; ".join([*summary[-1:], *counts[-1:], *([step.note] if step.note else [])])
    if step.status == "passed" and " passed" not in text:
        step.status, step.note = "failed", f"no test ran; {step.note}"
    return step


def benchmark_step(op: str, output: Path, quick: bool, limit: float, *options: str) -> Step:
    """Benchmark one op; its JSON goes to ``ops-<op>.json``."""
    target = output / f"ops-{op}.json"
    script = str(ROOT / "benchmarks" / "ops.py")
    command = [sys.executable, script, "--json", "--only", op, *(["--quick"] if quick else []), *options]
    step = run(f"benchmark-{op}", command, output, limit, stdout=target)
    del step.details["text"]
    try:
        found = json.loads(target.read_text())
        step.details.update(results=found["results"], left_out=found["left_out"], machine=found["machine"])
        missed = [row for row in found["results"] if row["floor"] is not None and row["ratio"] < row["floor"]]
        step.note = f"{len(found['results'])} results, {len(missed)} below their floor"
    except (OSError, ValueError, KeyError) as error:
        step.status = "failed" if step.status == "passed" else step.status
        step.note = f"{step.note} no JSON: {error}".strip()
    return step


def table_step(gpu: str, output: Path) -> Step:
    """Write the fastest backends by the benchmarks of this output folder into the table that "auto" reads.

    A copy goes to the output folder.
    """
    from ovsdino.errors import OVSDinoError
    from ovsdino.ops import measured
    from ovsdino.ops.dispatch import OP_BACKENDS

    print("== table", flush=True)
    found = [output / f"ops-{op}.json" for op in OPS]
    try:
        results = [row for file in found if file.is_file() for row in json.loads(file.read_text())["results"]]
        rows = measured.rows_from(results, gpu, OP_BACKENDS)
        if not rows:
            return Step("table", "skipped", note="no benchmark of two backends")
        for path in (TABLE, output / TABLE.name):
            measured.merge(path, rows, OP_BACKENDS)
    except (OSError, ValueError, KeyError, OVSDinoError) as error:
        return Step("table", "failed", note=f"{TABLE.name} is as it was: {error}")
    return Step("table", "passed", note=f"{len(rows)} rows for {gpu} in {TABLE.relative_to(ROOT)}")


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


def save(facts: dict[str, Any], steps: list[Step], output: Path) -> str:
    """Write the JSON and the table: this run's steps, and of earlier runs into the folder those that it has not.

    Returns:
        The table.
    """
    target, fresh = output / "gpu_check.json", {step.name: step for step in steps}
    merged: dict[str, Step] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        merged = {step["name"]: Step(**step) for step in json.loads(target.read_text())["steps"]}
    merged.update(fresh)
    listed = list(merged.values())
    passed = all(step.status in ("passed", "skipped") for step in listed)
    document = {"machine": facts, "passed": passed, "steps": [asdict(step) for step in listed]}
    for path, text in (
        (target, json.dumps(document, indent=2) + "\n"),
        (output / "gpu_check.md", report(facts, listed)),
    ):
        with atomic_write(path) as file:
            file.write(text.encode())
    return report(facts, listed)


def jobs(options: argparse.Namespace, facts: dict[str, Any], output: Path) -> Iterator[Callable[[float], Step]]:
    """The steps of the parts that were asked for, in order; each takes the seconds left."""
    if "build" in options.parts:
        yield lambda left: build_step(facts["compute_capability"], output, min(left, 420))
    if "tests" in options.parts:
        yield lambda left: tests_step(output, min(left, 1200))
    if "benchmarks" in options.parts:
        for op in OPS:
            yield lambda left, op=op: benchmark_step(op, output, options.quick, min(left, 400))
    if "table" in options.parts:
        yield lambda left: table_step(facts["gpu"], output)
    if "sanitizer" in options.parts:
        for place, name in enumerate(SANITIZERS):
            rest = len(SANITIZERS) - place  # a slow tool leaves the others their share
            yield lambda left, name=name, rest=rest: sanitizer_step(
                name, output, options.kernels, min(options.sanitizer_limit, left / rest)
            )


def main() -> int:
    """Run the steps in order."""
    parser = argparse.ArgumentParser(description="build, test, benchmark and sanitize on this machine's GPU")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "gpu-check", help="folder for the report")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to run; default all")
    parser.add_argument("--quick", action="store_true", help="shorter benchmarks")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for all together")
    parser.add_argument("--kernels", default="ovsdino", help="sanitize kernels whose name holds this")
    parser.add_argument("--sanitizer-limit", type=float, default=300, help="seconds for each sanitizer tool")
    options = parser.parse_args()
    start = time.monotonic()
    try:
        facts = machine()
    except ModuleNotFoundError as error:
        print(f"error: gpu-check needs torch, triton, timm, numpy and pytest: {error}", file=sys.stderr)
        return 2
    if facts is None:
        print(
            "error: no CUDA device: torch.cuda.is_available() is False (look at nvidia-smi and CUDA_VISIBLE_DEVICES)",
            file=sys.stderr,
        )
        return 2
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    stage_package()
    steps: list[Step] = []
    for job in jobs(options, facts, output):
        steps.append(job(options.limit - (time.monotonic() - start)))
        table = save(facts, steps, output)
    print(table)
    return 0 if all(step.status in ("passed", "skipped") for step in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
