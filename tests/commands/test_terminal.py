"""The command line as a person sees it: plain lines at any width, correct help, and one line for an error."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ovsdino.cli import COMMANDS, main
from ovsdino.parsing import Group
from ovsdino.train.stopping import Stopped
from tests.commands.terminal import ROOT, on_terminal

OVSDINO = ("-m", "ovsdino")
EVERY = [
    *((name,) for name, command in COMMANDS.items() if not isinstance(command, Group)),
    ("data", "check"),
    ("data", "convert"),
]


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell line, with `ovsdino` and `python` of this checkout."""
    tools = {"OVSDINO": f"{sys.executable} -m ovsdino", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    env = {**os.environ, **tools, **environment}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env, cwd="/", check=False)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["segment"], "error: missing: --classes TEXT; see ovsdino segment --help"),
        (
            ["segment", "--clases", "a"],
            "error: no such option: --clases (did you mean --classes?); see ovsdino segment",
        ),
        (["train"], "error: missing: CONFIG.yaml; see ovsdino train --help"),
        (["data", "check"], "error: missing: NAME; see ovsdino data check --help"),
        (["segmnt"], "error: no such command: segmnt (did you mean segment?); known: segment, eval, "),
        (["data", "chek"], "error: no such command: chek (did you mean check?); known: check, convert; "),
        (["doctor", "foo"], "error: unexpected argument: foo; see ovsdino doctor --help"),
        (["eval", "--dataset", "a", "--limit", "ten"], "error: --limit: ten is not INT; see ovsdino eval --help"),
        (["eval", "--dataset"], "error: "),
        (["eval", "--dataset", "a", "--dtype", "f8"], "error: --dtype: f8 is none of 'float32', 'bfloat16', "),
    ],
    ids=" ".join,
)
def test_usage_error_is_one_plain_line(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(line) and err.count("\n") == 1


@pytest.mark.parametrize("script", ["ovsdino", "deploy/export_onnx.py"])
def test_usage_error_on_a_terminal_is_the_line_that_a_pipe_gets(script: str) -> None:
    command = OVSDINO if script == "ovsdino" else (ROOT / script,)
    args = (*command, *(["segment"] if script == "ovsdino" else []), "--colour")
    seen = on_terminal(*args)
    piped = subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True, cwd="/", check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert seen.code == piped.returncode == 2
    assert seen.text == piped.stderr and len(seen.lines) == 1 and "\x1b" not in seen.text
    assert seen.text.startswith("error: no such option: --colour")


@pytest.mark.parametrize(
    "environment", [{}, {"TERM": "dumb"}, {"NO_COLOR": "1"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}], ids=str
)
def test_without_arguments_the_help_is_shown_plainly(environment: dict[str, str]) -> None:
    seen = on_terminal(*OVSDINO, columns=40, **environment)
    assert seen.code == 2 and "\x1b" not in seen.text and "Traceback" not in seen.text
    names = re.findall(r"^  ([\w-]+)$", seen.text, re.M)
    assert names == list(COMMANDS)
    example = '    ovsdino segment street.jpg --classes "road, car, sky"'
    assert max(len(line) for line in seen.lines if line != example) <= 40
    assert example in seen.lines  # an indented line stays whole, to be copied


@pytest.mark.parametrize("args", EVERY, ids=" ".join)
@pytest.mark.parametrize("columns", [40, 80])
def test_help_of_every_command(
    args: tuple[str, ...], columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([*args, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(f"Usage: ovsdino {' '.join(args)} [OPTIONS]")
    assert "None" not in out and "False" not in out and "(default: )" not in out
    too_long = [line for line in out.splitlines() if len(line) > columns]
    assert all(max(map(len, line.split())) > columns - 16 for line in too_long)  # one word that cannot be broken


def test_a_flag_that_is_on_by_default_is_described_by_what_its_option_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = shell(f"$PYTHON {ROOT}/benchmarks/latency.py --help")
    assert done.returncode == 0 and done.stderr == ""
    said = " ".join(done.stdout.split())
    assert "--no-memory Do not measure peak memory" in said and "(default: None)" not in said


@pytest.mark.parametrize(
    ("command", "code", "stderr"),
    [
        ("$OVSDINO --version >/dev/full", 2, "error: cannot write: No space left on device\n"),
        ("$OVSDINO segment --json >/dev/full", 2, "error: missing: --classes TEXT; see ovsdino segment --help\n"),
        ("$OVSDINO segment --help >/dev/full", 2, "error: cannot write: No space left on device\n"),
        ("$OVSDINO --version >&-", 2, "error: stdout is closed, so nothing can be printed: "),
        ("$OVSDINO segment 2>/dev/full", 2, ""),
        ("$OVSDINO segment --help | head -n 1; exit ${PIPESTATUS[0]}", 0, ""),
        ("$PYTHON " + str(ROOT / "deploy/export_trt.py") + " --help | head -n 1; exit ${PIPESTATUS[0]}", 0, ""),
    ],
)
def test_a_stdout_that_takes_nothing_is_one_line(command: str, code: int, stderr: str) -> None:
    done = shell(command)
    assert done.returncode == code and done.stderr.startswith(stderr)
    assert done.stderr.count("\n") == stderr.count("error")


def test_a_working_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    done = shell(f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir ../gone; $OVSDINO text --classes a --output b.st")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_an_unknown_backend_is_one_line(tmp_path: Path) -> None:
    image = f"{ROOT}/docs/pictures/camera_overlay.jpg"
    done = shell(f"$OVSDINO segment {image} --classes a,b --short-side 64 --output {tmp_path}/o", OVSDINO_BACKEND="foo")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: unknown backend 'foo' (OVSDINO_BACKEND)")


def test_json_is_ascii_where_stdout_is(tmp_path: Path) -> None:
    done = shell(f"$OVSDINO text --classes '車,café' --output {tmp_path}/b.st --json", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.isascii()
    assert json.loads(done.stdout)["classes"] == ["車", "café"]


def test_a_study_that_is_interrupted_says_that_all_is_saved(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr("ovsdino.train.ablation.run_ablation", interrupted)
    assert main(["ablate", str(ROOT / "configs" / "ablation.yaml")]) == 130
    assert capsys.readouterr().err == "stopped by SIGINT, all saved; the same command goes on from here\n"
