"""Everything to be checked on a CUDA machine, in one run: build, GPU tests, compute-sanitizer, op benchmarks.

    python scripts/gpu_check.py --output outputs/gpu-check

Needs torch, triton, timm, numpy and pytest, plus nvcc, cmake, ninja and pybind11 to build; no network, and no
installation of ovsdino: the sources and the fresh module are laid out in ``build/gpu-check`` and imported from there.
Writes ``gpu_check.json``, the table ``gpu_check.md`` and a log a step. Exit code 0: all passed; 1: a step failed; 2:
this machine cannot run the check, said in one line.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import build_native

ROOT = Path(__file__).resolve().parent.parent
STAGE = ROOT / "build" / "gpu-check"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")

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
    """What this machine is, or None where torch sees no CUDA device."""
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
    """Runs a command from the repository root under a time limit.

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
    """Lays the package out as an install would: links to the sources, the two mapped folders, and no module yet."""
    package = STAGE / "ovsdino"
    shutil.rmtree(STAGE, ignore_errors=True)
    package.mkdir(parents=True)
    for child in (ROOT / "ovsdino").iterdir():
        if child.suffix != ".so" and child.name != "__pycache__":
            (package / child.name).symlink_to(child)
    (package / "kernels").symlink_to(ROOT / "kernels" / "triton")
    (package / "deploy").symlink_to(ROOT / "deploy")


def build_step(capability: str, output: Path) -> Step:
    """Builds the module for this GPU alone, unless OVSDINO_CUDA_ARCHS asks for more."""
    archs = os.environ.get("OVSDINO_CUDA_ARCHS") or capability.replace(".", "")
    command = [sys.executable, str(ROOT / "scripts" / "build_native.py"), "--output", str(STAGE / "ovsdino")]
    step = run("build", command, output, 900, OVSDINO_CUDA="1", OVSDINO_CUDA_ARCHS=archs)
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


def tests_step(output: Path) -> Step:
    """Runs every test marked gpu; none at all is a failure, since nothing would have been checked."""
    report = output / "pytest.xml"
    report.unlink(missing_ok=True)
    step = run("tests", pytest_command("gpu", f"--junitxml={report}"), output, 1800)
    del step.details["text"]
    if report.is_file():
        suite = next(ElementTree.parse(report).iter("testsuite"))
        counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        step.details.update(counts)
        step.note = ", ".join(f"{count} {key}" for key, count in counts.items())
        if counts["tests"] - counts["skipped"] <= 0:
            step.status, step.note = "failed", f"no GPU test ran ({step.note})"
    return step


def sanitizer_steps(output: Path, kernels: str, limit: float) -> list[Step]:
    """Runs compute-sanitizer's four tools over the quick GPU tests, looking at our own kernels only."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")
    if tool is None:
        return [Step("sanitizer", "skipped", note="compute-sanitizer is not on PATH, nor below CUDA_HOME")]
    steps = []
    for name in SANITIZERS:
        command = [tool, "--tool", name, "--error-exitcode", "99", "--kernel-name", f"kernel_substring={kernels}"]
        command += ["--target-processes", "application-only", "--print-limit", "20"]
        if name == "memcheck":
            command += ["--report-api-errors", "no"]  # torch probes for features by calls that may fail
        command += pytest_command("gpu and not slow", "tests/ops")
        # Each tensor an allocation of its own, else an access past one lands unseen in the caching allocator's block.
        step = run(f"sanitizer-{name}", command, output, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        summary = [line.strip("= \n") for line in step.details.pop("text").splitlines() if "SUMMARY" in line]
        step.note = "; ".join([*summary[-1:], *([step.note] if step.note else [])])
        steps.append(step)
    return steps


def benchmark_step(output: Path, quick: bool) -> Step:
    """Runs the op benchmarks; their JSON goes to ``ops.json``."""
    script = ROOT / "benchmarks" / "ops.py"
    if not script.is_file():
        return Step("benchmarks", "skipped", note="benchmarks/ops.py is missing")
    target = output / "ops.json"
    command = [sys.executable, str(script), "--json", *(["--quick"] if quick else [])]
    step = run("benchmarks", command, output, 900, stdout=target)
    del step.details["text"]
    try:
        step.details["results"] = json.loads(target.read_text())["results"]
        step.note = f"{len(step.details['results'])} results"
    except (ValueError, KeyError) as error:
        step.status = "failed" if step.status == "passed" else step.status
        step.note = f"{step.note} no JSON: {error}".strip()
    return step


def report(facts: dict[str, Any], steps: list[Step]) -> str:
    """The outcome as Markdown: machine, steps, and a row a benchmark result."""
    lines = [f"# GPU check: {facts['gpu']}", "", ", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    lines += ["| step | status | seconds | note |", "|---|---|---|---|"]
    lines += [f"| {step.name} | {step.status} | {step.seconds} | {step.note} |" for step in steps]
    results = next((step.details["results"] for step in steps if "results" in step.details), [])
    if results:
        columns = list(dict.fromkeys(key for result in results for key in result))
        lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        for result in results:
            cells = (result.get(column) for column in columns)
            texts = ("" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
            lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the steps in order, and stops after a failed build."""
    parser = argparse.ArgumentParser(description="build, test, sanitize and benchmark on this machine's GPU")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "gpu-check", help="folder for the report")
    parser.add_argument("--skip", nargs="*", default=[], choices=("tests", "sanitizer", "benchmarks"))
    parser.add_argument("--quick", action="store_true", help="shorter benchmarks")
    parser.add_argument("--kernels", default="ovsdino", help="sanitize kernels whose mangled name holds this")
    parser.add_argument("--sanitizer-limit", type=float, default=300, help="seconds for each sanitizer tool")
    arguments = parser.parse_args()
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
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    stage_package()
    steps = [build_step(facts["compute_capability"], output)]
    if steps[0].status == "passed":
        if "tests" not in arguments.skip:
            steps.append(tests_step(output))
        if "sanitizer" not in arguments.skip:
            steps += sanitizer_steps(output, arguments.kernels, arguments.sanitizer_limit)
        if "benchmarks" not in arguments.skip:
            steps.append(benchmark_step(output, arguments.quick))
    table = report(facts, steps)
    passed = all(step.status in ("passed", "skipped") for step in steps)
    document = {"machine": facts, "passed": passed, "steps": [asdict(step) for step in steps]}
    (output / "gpu_check.json").write_text(json.dumps(document, indent=2) + "\n")
    (output / "gpu_check.md").write_text(table)
    print(table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
