"""The one-command GPU check on a machine that has no GPU: its steps on CPU tests, behind a stand-in sanitizer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.install.sandbox import ROOT, attempt

sys.path.insert(0, str(ROOT / "scripts"))

import gpu_check
import gpu_steps
from gpu_check import Step

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")

FACTS = {"gpu": "none", "compute_capability": "9.0"}


@pytest.fixture
def staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an output folder, with the package of this checkout next to it."""
    for module in (gpu_check, gpu_steps):
        monkeypatch.setattr(module, "STAGE", tmp_path / "stage")
    gpu_check.stage_package()
    gpu_check.link_step()
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a compute-sanitizer on PATH that runs the command and prints a summary."""
    tool = tmp_path / "tools" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(f"""#!/bin/sh
echo "========= COMPUTE-SANITIZER $*" >&2
while [ "$1" != "{sys.executable}" ]; do shift; done
"$@"
code=$?
echo "========= ERROR SUMMARY: 0 errors" >&2
exit $code
""")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")


def test_without_a_gpu_it_ends_with_one_clear_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = attempt(sys.executable, ROOT / "scripts" / "gpu_check.py", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout.startswith("error: no CUDA device")
    assert len(done.stdout.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_sanitizer_runs_the_tests_it_is_given_on_the_staged_package(staged: Path, sanitizer: None) -> None:
    # `gpu` tests are skipped here, so a test that runs anywhere stands in for them.
    chosen = ("tests/ops/test_dispatch.py", "-k", "unknown_name", "-m", "")
    step = gpu_check.sanitizer_step("memcheck", staged, "ovsdino", 300, chosen)
    assert step.status == "passed" and "ERROR SUMMARY: 0 errors" in step.note and "2 passed" in step.note
    log = (staged / "sanitizer-memcheck.log").read_text()
    assert "--kernel-name kernel_substring=ovsdino" in log


def test_sanitizer_that_ran_no_test_has_checked_nothing(staged: Path, sanitizer: None) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    step = gpu_check.sanitizer_step("racecheck", staged, "ovsdino", 300)
    assert step.status == "failed" and "no test ran" in step.note and "skipped" in step.note


def test_benchmark_step_reads_the_rows_and_counts_those_below_their_floor(staged: Path) -> None:
    step = gpu_check.benchmark_step("mask_pool", staged, True, 300, "--device", "cpu")
    assert step.status == "passed" and "results" in step.note
    assert {row["op"] for row in step.details["results"]} == {"mask_pool"}
    of_all_rows = ("strongest", "ratio_strongest")  # known when the last row is
    alone = [{key: x for key, x in row.items() if key not in of_all_rows} for row in step.details["results"]]
    assert gpu_check.read_rows(staged / "ops-mask_pool.jsonl") == alone


def test_benchmark_that_is_cut_off_keeps_the_rows_that_it_had(staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(name: str, command: list[str], output: Path, limit: float, stdout: Path) -> Step:
        stdout.write_text("")
        row = {"op": "mask_pool", "case": "the first", "ratio": 2.0, "floor": 4.0}
        Path(command[command.index("--rows") + 1]).write_text(json.dumps(row) + '\n{"op": "mask_')
        return Step(name, "timeout", note="longer than 9 s", details={"text": ""})

    monkeypatch.setattr(gpu_check, "run", cut)
    step = gpu_check.benchmark_step("mask_pool", staged, True, 9)
    assert step.status == "timeout" and step.note == "longer than 9 s, cut off: 1 results, 1 below their floor"
    assert [row["case"] for row in step.details["results"]] == ["the first"]


FIRST = """
import pytest

def test_one(): pass
def test_two(): pass
@pytest.mark.skip
def test_three(): pass
"""
HANGING = """
import subprocess, sys, time
from pathlib import Path

def test_quick(): pass

def test_hanging():
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(900)"
    child = subprocess.Popen([sys.executable, "-c", code])
    (Path(__file__).parent / "child").write_text(str(child.pid))
    time.sleep(900)
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Write a file of quick tests, and one of which a test hangs with a child that SIGTERM does not end."""
    for name, code in (("first", FIRST), ("hanging", HANGING)):
        (tmp_path / f"test_{name}.py").write_text(code)
    return [str(tmp_path / "test_first.py"), str(tmp_path / "test_hanging.py")]


def running(process: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], object]) -> None:
    """Wait for what comes in seconds; a minute is the end of patience on a busy machine."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited a minute")


def step_of(output: Path, name: str) -> dict[str, Any]:
    document = json.loads((output / "gpu_check.json").read_text())
    return next(step for step in document["steps"] if step["name"] == name)


@needs_proc
def test_step_at_its_limit_is_killed_with_children_that_ignore_it(staged: Path) -> None:
    child = staged / "child"
    script = f"trap '' TERM; (echo started; exec sleep 900) & echo $! > {child}; wait"
    step = gpu_steps.run("hanging", ["sh", "-c", script], staged, gpu_steps.LEAST_S)
    assert (step.status, step.note, step.details["text"]) == ("timeout", "longer than 5 s", "started\n")
    until(lambda: not running(int(child.read_text())))


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_check_that_is_killed_in_the_middle_leaves_its_results_and_no_process(
    tmp_path: Path, files: list[str], number: signal.Signals
) -> None:
    child, output = tmp_path / "child", tmp_path / "out"
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--rehearse", "--output", str(output)]
    command += ["--parts", "build", "tests", "--tests", *files]
    with (tmp_path / "printed").open("w") as printed:
        check = subprocess.Popen(command, stdout=printed, stderr=printed)
    until(lambda: child.is_file() and child.read_text())
    check.send_signal(number)
    check.wait(60)
    until(lambda: not running(int(child.read_text())))
    first = step_of(output, "tests-test_first")
    assert first["status"] == "passed" and first["note"] == "2 passed, 1 skipped"
    rows = gpu_check.read_rows(output / "tests-test_hanging.jsonl")
    outcomes = {row["test"].rsplit("::")[-1]: row["outcome"] for row in rows if "test" in row}
    assert outcomes == {"test_quick": "passed", "test_hanging": "started"}
    with tarfile.open(output / "results.tar.gz") as tar:
        names = set(tar.getnames())
    assert {"out/gpu_check.json", "out/gpu_check.md", "out/tests-test_first.jsonl", "out/tests-test_first.log"} <= names
    if number == signal.SIGKILL:
        return  # what is there was written before
    assert check.returncode == 128 + number
    hanging = step_of(output, "tests-test_hanging")
    assert hanging["status"] == "interrupted" and hanging["details"]["tests"] == 2
    assert hanging["details"]["running"].endswith("::test_hanging") and hanging["note"].endswith("; SIGTERM")

    # Again, on the same sources: what passed is not run a second time.
    Path(files[1]).write_text("def test_quick(): pass\n")
    done = attempt(*command, "--resume")
    assert done.returncode == 0 and "== tests-test_first: passed before" in done.stdout
    assert step_of(output, "tests")["note"] == "4 tests, 3 passed, 0 failures, 1 skipped"


MEETING = """
import time
from pathlib import Path

def test_meets_the_other():
    here = Path(__file__).parent
    (here / "NAME.here").touch()
    for _ in range(600):
        if len(list(here.glob("*.here"))) == 2:
            return
        time.sleep(0.1)
    raise AssertionError("alone for a minute")
"""


def test_files_of_tests_run_at_once(tmp_path: Path) -> None:
    files = [tmp_path / f"test_{name}.py" for name in ("one", "other")]
    for file in files:
        file.write_text(MEETING.replace("NAME", file.stem))
    command = [sys.executable, ROOT / "scripts" / "gpu_check.py", "--rehearse", "--output", tmp_path / "out"]
    done = attempt(*command, "--parts", "build", "tests", "--jobs", "2", "--tests", *files)
    assert done.returncode == 0
    assert step_of(tmp_path / "out", "tests")["note"] == "2 tests, 2 passed, 0 failures, 0 skipped"


@needs_proc
def test_all_files_of_tests_that_run_are_killed(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        (folder / f"test_{folder.name}.py").write_text(HANGING)
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--rehearse", "--output", str(tmp_path / "out")]
    command += ["--parts", "tests", "--jobs", "2", "--tests", *map(str, folders)]
    with (tmp_path / "printed").open("w") as printed:
        check = subprocess.Popen(command, stdout=printed, stderr=printed)
    children = [folder / "child" for folder in folders]
    until(lambda: all(child.is_file() and child.read_text() for child in children))
    check.send_signal(signal.SIGTERM)
    assert check.wait(60) == 128 + signal.SIGTERM
    until(lambda: not any(running(int(child.read_text())) for child in children))
    assert all(step_of(tmp_path / "out", f"tests-test_{x.name}")["status"] == "interrupted" for x in folders)


def test_machine_decides_how_many_files_run_at_once() -> None:
    assert gpu_check.jobs_at_once({"cpu_cores": 16, "memory_gib": 139.8}) == 4
    assert gpu_check.jobs_at_once({"cpu_cores": 12, "memory_gib": 30.0}) == 1
    assert gpu_check.jobs_at_once({"cpu_cores": None}) == 1


def test_each_benchmark_has_its_share_of_the_time_left() -> None:
    assert list(gpu_check.shares(("one", "two", "three"))) == [("one", 1 / 3), ("two", 1 / 2), ("three", 1.0)]


def test_table_step_reads_the_rows_of_a_benchmark_that_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "measured.json"
    monkeypatch.setattr(gpu_check, "TABLE", table)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    output = tmp_path / "out"
    output.mkdir()
    whole = {"op": "structure_attention", "dtype": "float16", "gradient": False, "size": 64, "backend": "triton"}
    whole |= {"rival": "sdpa", "ours_ms": 1.0, "baseline_ms": 2.0}
    rows = [whole, {**whole, "size": 9999, "ours_ms": 3.0}, {**whole, "dtype": "bfloat16"}]
    (output / "ops-structure_attention.json").write_text("")
    (output / "ops-structure_attention.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert gpu_check.table_step("Mine", output).status == "passed"
    found = [(row["dtype"], row["at_least"], row["backend"]) for row in json.loads(table.read_text())["rows"]]
    assert found == [("float16", 0, "triton"), ("float16", 799, "sdpa")]  # of bfloat16 sizes may be missing


def test_table_step_merges_the_fastest_backends_into_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "ops" / "measured.json"
    table.parent.mkdir()
    other = {"device": "Other", "op": "structure_attention", "dtype": "float16", "gradient": False, "at_least": 0}
    table.write_text(json.dumps({"format": 1, "rows": [{**other, "below": None, "backend": "cuda"}]}))
    monkeypatch.setattr(gpu_check, "TABLE", table)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    assert gpu_check.table_step("Mine", tmp_path).status == "skipped"
    result = {"op": "structure_attention", "dtype": "float16", "gradient": False, "size": 64, "backend": "triton"}
    result |= {"rival": "sdpa", "ours_ms": 1.0, "baseline_ms": 2.0}
    results = tmp_path / "ops-structure_attention.json"
    results.write_text(json.dumps({"results": [result]}))
    step = gpu_check.table_step("Mine", tmp_path)
    assert (step.status, step.note) == ("passed", "1 rows for Mine in ops/measured.json")
    rows = json.loads(table.read_text())["rows"]
    assert [(row["device"], row["backend"]) for row in rows] == [("Mine", "triton"), ("Other", "cuda")]
    assert [row["device"] for row in json.loads((tmp_path / "measured.json").read_text())["rows"]] == ["Mine"]

    written = table.read_text()
    results.write_text(json.dumps({"results": [{**result, "backend": "flash"}]}))
    step = gpu_check.table_step("Mine", tmp_path)
    assert step.status == "failed" and "as it was" in step.note and table.read_text() == written


def test_failing_step_says_why_and_a_step_without_time_does_not_start(staged: Path) -> None:
    failed = gpu_check.run("broken", [sys.executable, "-c", "raise SystemExit('no luck')"], staged, 60)
    assert (failed.status, failed.note) == ("failed", "exit code 1") and "no luck" in failed.details["text"]
    late = gpu_check.run("late", [sys.executable, "-c", "1"], staged, 1)
    assert (late.status, late.note) == ("timeout", "no time left")


def test_report_keeps_the_steps_of_earlier_parts(tmp_path: Path) -> None:
    row = {"op": "mask_pool", "ratio": 2.0, "floor": None}
    gpu_check.save(FACTS, [Step("build", "passed"), Step("tests", "failed", note="1 failures")], tmp_path)
    gpu_check.save(FACTS, [Step("tests", "passed", note="9 tests")], tmp_path)
    table = gpu_check.save(FACTS, [Step("benchmark-mask_pool", "passed", details={"results": [row]})], tmp_path)
    document = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [step["name"] for step in document["steps"]] == ["build", "tests", "benchmark-mask_pool"]
    assert document["passed"] and "9 tests" in table and "| mask_pool | 2 |  |" in table
    assert (tmp_path / "gpu_check.md").read_text() == table


def test_parts_choose_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("build_step", "tests_step", "benchmark_step", "sanitizer_step"):
        monkeypatch.setattr(gpu_check, name, lambda *arguments, name=name: Step(name, "failed"))
    monkeypatch.setattr(gpu_check, "test_files", lambda *arguments: [])
    monkeypatch.setattr(gpu_check, "machine", lambda rehearse: FACTS)
    for module in (gpu_check, gpu_steps):
        monkeypatch.setattr(module, "STAGE", tmp_path / "stage")
    monkeypatch.setattr(gpu_check.INTERRUPTION, "install", lambda: None)
    command = ["gpu_check.py", "--output", str(tmp_path / "out"), "--parts", "tests", "sanitizer"]
    monkeypatch.setattr(sys, "argv", command)
    assert gpu_check.main() == 1
    document = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert {step["name"] for step in document["steps"]} == {"tests_step", "sanitizer_step"}  # a failure stops none
