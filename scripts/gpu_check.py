"""Check everything on a CUDA machine: build, GPU tests, op benchmarks, the table of backends, compute-sanitizer.

    python scripts/gpu_check.py --output outputs/gpu-check                       all parts
    python scripts/gpu_check.py --output D --limit 570 --resume                  where a command may take ten minutes:
                                                                                 again and again, until it exits with 0
    python scripts/gpu_check.py --output D --parts build tests --limit 570       or part by part; the later ones use the
                                                                                 first one's build
    python scripts/gpu_check.py --output D --rehearse                            the same steps on a CPU

Needs torch, triton, timm, numpy and pytest, plus nvcc, cmake, ninja and pybind11 to build; no network, and no
installation of ovsdino: the sources and the fresh module are laid out in ``build/gpu-check`` and imported from there.

A step is a process group of its own, killed as a whole at its limit; the tests are a step for each file, several at
once where the machine has the cores and the memory. Benchmarks run alone, the long one last, and leave each other their
share of the time. A part that fails stops no other. After each step ``gpu_check.json``, the table ``gpu_check.md`` and
``results.tar.gz``, with those and every log, are written; they hold the latest outcome of every step of that output
folder. Tests and benchmarks write a row as each test or case ends, so a step that was killed has its rows too.

Exit code 0: all of this run passed; 1: a step failed; 2: this machine cannot run the check, said in one line; 128 + n:
ended by signal n.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import build_native
from gpu_steps import INTERRUPTION, ROOT, STAGE, Step, run, save, saved, together

TABLE = ROOT / "ovsdino" / "ops" / "measured.json"
# In the order of their benchmarks: the last one takes the time that the others leave.
OPS = ("mask_pool", "preprocess", "upsample_argmax", "guided_upsample", "pipeline", "structure_attention")
PARTS = ("build", "tests", "benchmarks", "table", "sanitizer")
# Not initcheck: it does not watch torch's kernels, and takes what they wrote for memory that nobody did.
SANITIZERS = ("memcheck", "racecheck", "synccheck")
TESTS = ("tests/ops", "tests/test_pipeline.py")
# Of the common suite: each kernel of ours on odd and strided shapes, forward and backward. A tool slows a kernel 10 to
# 100 times, so the rest is left to the tests.
SANITIZED = ("tests/ops/test_contract.py", "-k", "(-cuda-cuda- or -triton-cuda-) and (error or strided) and not shape")
OUTCOMES = {"passed": "passed", "failures": "failed", "skipped": "skipped"}  # ours by pytest's
SLOW_TEST_S = 120  # a test that runs longer writes where every thread of it is
MOST_JOBS, JOB_CORES, JOB_GIB = 4, 4, 16  # files of tests at once, and what each asks of the machine
SOURCES = ("ovsdino", "kernels", "csrc", "benchmarks", "scripts", "tests", "deploy", "CMakeLists.txt", "pyproject.toml")

Job = tuple[str, Callable[[float], Step]]


def machine(rehearse: bool = False) -> dict[str, Any] | None:
    """Return what this machine is, or None where torch sees no CUDA device, unless in a rehearsal."""
    software = {"torch": version("torch"), "python": platform.python_version(), "cpu_cores": os.cpu_count()}
    if rehearse:
        return {"gpu": "none, a rehearsal on the CPU", "compute_capability": "0.0", **software}
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
        **software,
        "cuda": torch.version.cuda,
        "nvcc": next((word for word in _answer([nvcc, "--version"]).split() if word.startswith("V")), None)
        if nvcc
        else None,
    }


def _answer(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


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


def link_step() -> Step:
    """Take the module of this checkout in place of a build, for a rehearsal."""
    for module in (ROOT / "ovsdino").glob("_C*.so"):
        link = STAGE / "ovsdino" / module.name
        link.unlink(missing_ok=True)
        link.symlink_to(module)
    return Step("build", "skipped", note="a rehearsal takes the module that is there")


def pytest_command(rows: Path, marker: str, *arguments: str) -> list[str]:
    """The command that runs the tests a marker expression selects, importing the staged package; see gpu_pytest.py."""
    options = ["-q", "-m", marker, "-p", "no:cacheprovider", "-o", "pythonpath=", *arguments]
    return [sys.executable, str(ROOT / "scripts" / "gpu_pytest.py"), str(rows), *options]


def test_files(output: Path, marker: str, paths: Sequence[str], limit: float) -> list[str]:
    """Return the files below the paths that hold tests of the marker, those of most tests first.

    They are all files where pytest cannot collect.
    """
    rows = output / "collect.jsonl"
    step = run("collect", pytest_command(rows, marker, "--collect-only", *paths), output, limit)
    found = [row for row in read_rows(rows) if "files" in row]
    if step.status == "passed" and found:
        return found[0]["files"]
    places = [ROOT / path for path in paths]
    return [
        str(file) for place in places for file in ([place] if place.is_file() else sorted(place.rglob("test_*.py")))
    ]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines, none where it is missing; a last line that was cut off is left out."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def test_step(file: str, output: Path, limit: float, marker: str) -> Step:
    """Run the tests of one file; the note says how many ended how, and where a killed process was."""
    name = step_name(file)
    rows = output / f"{name}.jsonl"
    rows.unlink(missing_ok=True)
    patience = ("-o", f"faulthandler_timeout={SLOW_TEST_S}")
    step = run(name, pytest_command(rows, marker, *patience, file), output, limit)
    text, found = step.details.pop("text"), read_rows(rows)
    collected = next((row["collected"] for row in found if "collected" in row), 0)
    outcomes = {row["test"]: row["outcome"] for row in found if "test" in row}
    counts = {key: list(outcomes.values()).count(kind) for key, kind in OUTCOMES.items()}
    running = [test for test, outcome in outcomes.items() if outcome == "started"]
    step.details.update(tests=collected, **counts)
    step.details["failed_tests"] = [test for test, outcome in outcomes.items() if outcome == "failed"]
    notes = [f"{count} {key}" for key, count in counts.items() if count]
    notes += [f"{len(outcomes)} of {collected} begun"] if len(outcomes) < collected else []
    if running and step.status != "passed":
        step.details["running"] = running[-1]
        notes.append(f"in {running[-1]}")
    if step.status == "failed" and not found:
        notes += [line for line in text.strip().splitlines()[-1:] if line]
    step.note = "; ".join([", ".join(notes), *([step.note] if step.note else [])]).strip("; ")
    return step


def step_name(file: str) -> str:
    """Return the step of a test file: tests-ops-test_contract for tests/ops/test_contract.py."""
    path = Path(file).resolve()
    return "-".join(path.relative_to(ROOT).with_suffix("").parts) if ROOT in path.parents else f"tests-{path.stem}"


def tests_step(steps: Sequence[Step]) -> Step:
    """Sum up the files' steps; no test at all is a failure, since nothing would have been checked."""
    counts = {key: sum(step.details.get(key, 0) for step in steps) for key in ("tests", *OUTCOMES)}
    bad = [step.name for step in steps if step.status not in ("passed", "skipped")]
    note = ", ".join(f"{count} {key}" for key, count in counts.items())
    note += f"; not whole: {', '.join(bad)}" if bad else ""
    seconds = round(sum(step.seconds for step in steps), 1)
    if counts["passed"] + counts["failures"] == 0:
        return Step("tests", "failed", seconds, f"no GPU test ran ({note})", counts)
    return Step("tests", "failed" if bad else "passed", seconds, note, counts)


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
    command += pytest_command(output / f"sanitizer-{name}.jsonl", "gpu and not slow", *tests)
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
    """Benchmark one op.

    The JSON goes to ``ops-<op>.json``, and each row, as its case ends, to ``ops-<op>.jsonl``: those of a benchmark that
    was cut off are in the step as well.
    """
    target, rows = output / f"ops-{op}.json", output / f"ops-{op}.jsonl"
    rows.unlink(missing_ok=True)
    script = str(ROOT / "benchmarks" / "ops.py")
    command = [sys.executable, script, "--json", "--only", op, "--rows", str(rows), *(["--quick"] if quick else [])]
    step = run(f"benchmark-{op}", [*command, *options], output, limit, stdout=target)
    del step.details["text"]
    try:
        found = json.loads(target.read_text())
    except (OSError, ValueError):
        found = {"results": read_rows(rows), "left_out": []}
        step.status = "failed" if step.status == "passed" else step.status
        step.note = f"{step.note}, cut off:".strip(", ")
    step.details.update({key: found[key] for key in ("results", "left_out", "machine") if key in found})
    missed = [row for row in found["results"] if row["floor"] is not None and row["ratio"] < row["floor"]]
    step.note = f"{step.note} {len(found['results'])} results, {len(missed)} below their floor".strip()
    return step


def results_of(op: str, output: Path) -> list[dict[str, Any]]:
    """Return the rows of an op's benchmark in this output folder, none where it did not run.

    Of one that was cut off, the rows of the dtype and direction that it was at are left out: sizes may be missing.
    """
    with suppress(OSError, ValueError, KeyError):
        return json.loads((output / f"ops-{op}.json").read_text())["results"]

    def kind(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["dtype"], row.get("gradient")

    rows = read_rows(output / f"ops-{op}.jsonl")
    return [row for row in rows if kind(row) != kind(rows[-1])]


def table_step(gpu: str, output: Path) -> Step:
    """Write the fastest backends by the benchmarks of this output folder into the table that "auto" reads.

    A copy goes to the output folder.
    """
    from ovsdino.errors import OVSDinoError
    from ovsdino.ops import measured
    from ovsdino.ops.dispatch import OP_BACKENDS

    print("== table", flush=True)
    try:
        results = [row for op in OPS for row in results_of(op, output)]
        rows = measured.rows_from(results, gpu, OP_BACKENDS)
        if not rows:
            return Step("table", "skipped", note="no benchmark of two backends")
        for path in (TABLE, output / TABLE.name):
            measured.merge(path, rows, OP_BACKENDS)
    except (OSError, ValueError, KeyError, OVSDinoError) as error:
        return Step("table", "failed", note=f"{TABLE.name} is as it was: {error}")
    return Step("table", "passed", note=f"{len(rows)} rows for {gpu} in {TABLE.relative_to(ROOT)}")


def sources_digest() -> str:
    """Return the SHA-256 of all sources that a step may run, 16 digits of it."""
    digest = hashlib.sha256()
    for name in SOURCES:
        top = ROOT / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh", ".cpp", ".h", ".toml", ".txt") and path.is_file():
                digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def jobs_at_once(facts: dict[str, Any]) -> int:
    """Return how many files of tests the cores and the GPU memory of a machine are enough for."""
    cores, memory = facts.get("cpu_cores") or 1, facts.get("memory_gib", JOB_GIB * MOST_JOBS)
    return max(1, min(MOST_JOBS, cores // JOB_CORES, int(memory // JOB_GIB)))


def jobs(options: argparse.Namespace, facts: dict[str, Any], output: Path) -> Iterator[list[Job]]:
    """The steps of the parts that were asked for, by name, each taking the seconds left; a list's may overlap."""
    device = ("--device", "cpu") if options.rehearse else ()
    if "build" in options.parts:
        yield [
            (
                "build",
                (
                    (lambda left: link_step())
                    if options.rehearse
                    else (lambda left: build_step(facts["compute_capability"], output, min(left, 420)))
                ),
            )
        ]
    if "tests" in options.parts:
        marker, limit = ("not gpu and not slow" if options.rehearse else "gpu"), options.test_limit
        files = {step_name(file): file for file in test_files(output, marker, options.tests, min(limit, 120))}
        yield [
            (name, lambda left, file=file: test_step(file, output, min(left, limit), marker))
            for name, file in files.items()
        ]
        yield [("tests", lambda left: tests_step([step for name, step in saved(output).items() if name in files]))]
    if "benchmarks" in options.parts:
        for op, share in shares(OPS):
            yield [
                (
                    f"benchmark-{op}",
                    lambda left, op=op, share=share: benchmark_step(
                        op, output, options.quick, min(left * share, 400), *device
                    ),
                )
            ]
    if "table" in options.parts and not options.rehearse:
        yield [("table", lambda left: table_step(facts["gpu"], output))]
    if "sanitizer" in options.parts and not options.rehearse:
        for name, share in shares(SANITIZERS):
            yield [
                (
                    f"sanitizer-{name}",
                    lambda left, name=name, share=share: sanitizer_step(
                        name, output, options.kernels, min(options.sanitizer_limit, left * share)
                    ),
                )
            ]


def shares(names: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield each name and the part of the time left that is its own, so that a slow one leaves the others theirs."""
    for place, name in enumerate(names):
        yield name, 1 / (len(names) - place)


def done_before(step: Step | None, sources: str) -> bool:
    """Return whether a step of an earlier run need not run again: the sum of the tests must, a lost build too."""
    if step is None or step.status not in ("passed", "skipped") or step.sources != sources or step.name == "tests":
        return False
    return step.name != "build" or bool(list((STAGE / "ovsdino").glob("_C*")))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="build, test, benchmark and sanitize on this machine's GPU")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "gpu-check", help="folder for the report")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to run; default all")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="files and folders of the part tests")
    parser.add_argument("--quick", action="store_true", help="shorter benchmarks")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for all together")
    parser.add_argument("--resume", action="store_true", help="leave out steps that passed here on these sources")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU: no build, table or sanitizer")
    parser.add_argument("--kernels", default="ovsdino", help="sanitize kernels whose name holds this")
    parser.add_argument("--jobs", type=int, help="files of tests at once; default by cores and GPU memory")
    parser.add_argument("--test-limit", type=float, default=300, help="seconds for each file of tests")
    parser.add_argument("--sanitizer-limit", type=float, default=300, help="seconds for each sanitizer tool")
    return parser.parse_args()


def main() -> int:
    """Run the steps in order."""
    options = parse()
    start = time.monotonic()
    try:
        facts = machine(options.rehearse)
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
    INTERRUPTION.install()
    stage_package()
    sources = sources_digest()
    earlier = saved(output) if options.resume else {}
    steps: list[Step] = []
    table = ""
    workers = options.jobs or jobs_at_once(facts)
    for group in jobs(options, facts, output):
        wanted = []
        for name, job in group:
            if done_before(earlier.get(name), sources):
                print(f"== {name}: {earlier[name].status} before", flush=True)
            else:
                wanted.append((name, job))
        for step in together(wanted, workers, lambda: options.limit - (time.monotonic() - start)):
            step.sources = sources
            steps.append(step)
            table = save(facts, steps, output)
        if INTERRUPTION.signal:
            return 128 + INTERRUPTION.signal
    print(table)
    return 0 if all(step.status in ("passed", "skipped") for step in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
