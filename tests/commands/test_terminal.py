"""The command line as a person sees it: plain lines at any width, correct help, and one line for an error."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from ovsdino import console as running
from ovsdino.cli import COMMANDS, main
from ovsdino.errors import OVSDinoError
from ovsdino.parsing import Argument, Group, OptionalValue, command_help, parse
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
    names = re.findall(r"^  (\w+)$", seen.text, re.M)
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


@dataclass(frozen=True, kw_only=True)
class Example:
    """Do what the
    first paragraph says.

    Like this:

        step one
          step two
    """

    sources: Annotated[tuple[Path, ...], Argument("SOURCE...")] = ()
    """What to read."""
    kind: Literal["a", "b"] = "a"
    """Which one."""
    level: float | None = None
    """How much."""
    memory: bool = True
    """Measure peak memory."""
    quiet: bool = False
    """Say nothing."""
    size: tuple[int, int] = (3, 4)
    """Height and width."""
    name_: str
    """Name of it."""


def test_help_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    assert (
        command_help(Example, "tool")
        == """\
Usage: tool [OPTIONS] SOURCE...

Do what the first paragraph says.

Like this:

    step one
      step two

Arguments:
  SOURCE...
      What to read.

Options:
  --kind {a,b}
      Which one. (default: a)
  --level FLOAT
      How much.
  --no-memory
      Do not measure peak memory.
  --quiet
      Say nothing.
  --size INT INT
      Height and width. (default: 3 4)
  --name TEXT
      Name of it. (required)
"""
    )
    monkeypatch.setenv("COLUMNS", "80")
    assert "  --no-memory     Do not measure peak memory.\n" in command_help(Example, "tool")


def test_a_flag_that_is_on_by_default_is_described_by_what_its_option_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = shell(f"$PYTHON {ROOT}/benchmarks/latency.py --help")
    assert done.returncode == 0 and done.stderr == ""
    assert "--no-memory         Do not measure peak memory" in done.stdout and "(default: None)" not in done.stdout


def test_the_options_of_the_help_are_those_that_are_parsed() -> None:
    line = ["x", "y", "--kind", "b", "--level", "2", "--no-memory", "--quiet", "--size", "5", "6", "--name", "n"]
    assert parse(Example, "tool", line) == Example(
        sources=(Path("x"), Path("y")), kind="b", level=2.0, memory=False, quiet=True, size=(5, 6), name_="n"
    )
    with pytest.raises(OVSDinoError, match=r"^missing: --name TEXT; see tool --help$"):
        parse(Example, "tool", [])


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Options among arguments."""

    first: Annotated[str, Argument("FIRST")]
    others: Annotated[tuple[str, ...], Argument("[OTHER...]")] = ()
    level: Annotated[float | None, OptionalValue("T", 0.5)] = None
    sizes: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("a b --level c", Mixed(first="a", others=("b", "c"), level=0.5)),
        ("--level .25 a", Mixed(first="a", level=0.25)),
        ("--level=1e-3 a --sizes 1 2", Mixed(first="a", level=0.001, sizes=(1, 2))),
        ("a --level", Mixed(first="a", level=0.5)),
        ("--level -1 a", Mixed(first="a", level=-1.0)),
        ("--sizes 3 -- a -x --level", Mixed(first="a", others=("-x", "--level"), sizes=(3,))),
        ("-- a b", Mixed(first="a", others=("b",))),
        ("a --sizes 1 -- b", Mixed(first="a", others=("b",), sizes=(1,))),
    ],
)
def test_options_stand_anywhere_and_words_after_two_dashes_are_arguments(line: str, options: Mixed) -> None:
    assert parse(Mixed, "tool", line.split()) == options


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "missing: FIRST"),
        ("--level a -x", "no such option: -x"),
        ("a --level_s 3", "no such option: --level-s (did you mean --level?)"),
        ("a --sizes 1 x", "--sizes: x is not INT"),
        ("a --level=much", "--level: much is not FLOAT"),
    ],
)
def test_a_line_that_cannot_be_parsed_is_told_in_one(line: str, message: str) -> None:
    with pytest.raises(OVSDinoError) as caught:
        parse(Mixed, "tool", line.split())
    assert str(caught.value) == f"{message}; see tool --help"


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
    done = shell(f"$OVSDINO segment {ROOT}/docs/china_overlay.png --classes a,b --short-side 64 --output {tmp_path}/o",
                 OVSDINO_BACKEND="foo")  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: unknown backend 'foo' (OVSDINO_BACKEND)")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device", "/x/last"), 2, "/x/last: No space left on device"),
        (PermissionError(13, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory"),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx"), 2, "this command needs onnx"),
        (
            ModuleNotFoundError("No module named 'ovsdino.gone'", name="ovsdino.gone"),
            1,
            "internal error, please report",
        ),
        (KeyError("lost"), 1, "KeyError: 'lost' (internal error, please report it)"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_the_machine_refuses_is_no_internal_error(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> int:
        raise error

    assert running.run_command(["--json"], body) == code
    out, err = capsys.readouterr()
    assert words in json.loads(out)["error"] and words in err
    assert ("Traceback" in err) == (code == 1) and (err.count("\n") == 1) == (code != 1)


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
