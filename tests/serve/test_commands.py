"""`ovsdino serve` and `ovsdino demo` as processes, and the requests that docs/serving.md shows."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovsdino.cli import main
from ovsdino.errors import OVSDinoError
from ovsdino.serve import server as module
from ovsdino.serve.limits import Limits
from tests.docs.commands import commands
from tests.support.serving import picture

PAGE = "docs/serving.md"
PORT = "http://127.0.0.1:7861"


@pytest.fixture(scope="module")
def process() -> Iterator[tuple[Any, str]]:
    """Yield a running `ovsdino serve` and its address."""
    for name in ("starlette", "uvicorn", "python_multipart", "pycocotools"):
        pytest.importorskip(name, reason="needs the extra serve")
    command = [sys.executable, "-m", "ovsdino", "serve", "--port", "0", "--device", "cpu", "--short-side", "64"]
    found = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = found.stdout.readline()
    yield found, line.split()[0]
    found.kill()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that has the page's street.jpg."""
    (tmp_path / "street.jpg").write_bytes(picture("JPEG"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_requests_of_the_page_are_answered(
    process: tuple[Any, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = [command for command in commands(PAGE) if command.python or command.text.startswith("curl")]
    assert len(there) == 4
    for command in there:
        text = command.text.replace(PORT, process[1])
        if command.python:
            exec(compile(text, PAGE, "exec"), {"__name__": "page"})
            assert len(re.findall(r"^(road|car|sky) \d", capsys.readouterr().out, re.M)) == 3
        else:
            done = subprocess.run([*shlex.split(text), "-sS", "--fail"], capture_output=True, text=True, check=False)
            assert done.returncode == 0, (text, done.stderr)
            if "-o" not in command.text:
                assert isinstance(json.loads(done.stdout), dict)
    assert (folder / "labels.png").read_bytes()[:4] == b"\x89PNG"


def test_a_port_that_is_taken_is_a_line(process: tuple[Any, str], capsys: pytest.CaptureFixture[str]) -> None:
    port = process[1].rsplit(":", 1)[1]
    assert main(["serve", "--port", port]) == 2
    assert f"error: cannot listen at 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_ctrl_c_ends_it_in_peace(process: tuple[Any, str]) -> None:  # the last test of the process
    process[0].send_signal(signal.SIGINT)
    assert process[0].wait(60) == 0
    said = process[0].stderr.read()
    assert said.endswith("stopped\n") and "Traceback" not in said
    host, port = process[1].removeprefix("http://").split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "--port is 70000: expected 0..65535"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1"),
        (["--max-waiting", "0"], "--max-waiting is 0: expected 1..1024"),
    ],
)
def test_a_bad_option_is_a_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("starlette", reason="needs the extra serve")
    assert main(["serve", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.MODULES, "demo", ("no_such_package",))
    with pytest.raises(OVSDinoError, match=r"no_such_package.*pip install 'ovsdino\[demo\]'"):
        module.check_installed(page=True)


def test_the_page_states_the_limits_that_are_in_force() -> None:
    text = (Path(__file__).parents[2] / PAGE).read_text()
    limits = Limits()
    for name in ("max_classes", "max_seconds", "max_megabytes", "max_megapixels", "max_waiting"):
        assert f"`--{name.replace('_', '-')}` ({getattr(limits, name)})" in text
