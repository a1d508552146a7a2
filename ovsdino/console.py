"""Printing and exit codes of every command and script; `ovsdino.parsing` turns their lines into options.

Exit codes: 0 done, 2 bad usage, bad input or an environment that does not do its part, 1 an internal error (with its
traceback), 130 interrupted. With --json stdout holds exactly one JSON object, {"error": ...} when the command could not
be done.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ovsdino.errors import OVSDinoError, one_line, out_of_memory

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["note_escapes", "print_json", "progress_bar", "run_command", "say"]

# Modules of the extra torch, which a robot's install leaves out.
TORCH = ("huggingface_hub", "scipy", "timm", "torch", "torchmetrics", "torchvision", "yaml")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def print_json(data: dict[str, Any]) -> None:
    """Print the one JSON object of a command, on one line of stdout.

    What stdout's encoding lacks is written as JSON's own escapes.

    Raises:
        ValueError: A number is NaN or infinite, which JSON has no form for.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(data, allow_nan=False)
    print(text, flush=True)


def say(message: object) -> None:
    """Print one line on stderr; where that cannot be written, the exit code must do."""
    with suppress(OSError):
        print(one_line(message, 2000), file=sys.stderr, flush=True)


def note_escapes(texts: Iterable[object], encoding: str, where: str) -> None:
    """Say once that a name is more than an encoding can hold, and so is written with escapes."""
    for text in map(str, texts):
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            say(f"note: {ascii(text)[1:-1]}: written with escapes {where}")
            return


def progress_bar(shown: bool = True) -> Progress:
    """Return a progress bar on stderr; silent unless stderr is a terminal that can move its cursor."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    able = console.is_terminal and not console.is_dumb_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not shown or not able)


def run_command(args: Sequence[str], body: Callable[[], int]) -> int:
    """Run ``body`` and return the exit code; errors become one line on stderr.

    Args:
        args: The command line, for whether it asks for JSON.
        body: Parses the line and does the command.
    """
    as_json = "--json" in args
    try:
        if _open_streams():
            raise OVSDinoError("stdout is closed, so nothing can be printed: send it to a file or to /dev/null")
        _check_working_folder()
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
        code = int(body())
        sys.stdout.flush()  # here, where a full disk still becomes an exit code
        return code
    except KeyboardInterrupt:
        return _fail("interrupted", 130, as_json)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        _drop_stdout()
        return 0
    except Exception as error:
        reason = _outside_cause(error)
        if reason is not None:
            return _fail(reason, 2, as_json)
        traceback.print_exc()
        name = type(error).__name__
        return _fail(f"{name}: {one_line(error)} (internal error, please report it)", 1, as_json)


def _outside_cause(error: Exception) -> str | None:
    """Return one line on an error that the input or the machine caused, None for an internal error."""
    if isinstance(error, OVSDinoError):
        return one_line(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.split(".")[0]
        if package in TORCH:
            remedy = "pip install 'ovsdino[torch]' (on a Jetson NVIDIA's own torch comes first: docs/jetson.md)"
            return f"this needs {package}, which is not installed: {remedy}"
        if package != "ovsdino":
            return (
                f"this command needs {package}, which is not installed: `ovsdino doctor` lists what each extra brings"
            )
    if out_of_memory(error):
        return f"out of memory: {one_line(error, 200) or 'an allocation failed'}; take smaller or fewer images"
    if isinstance(error, OSError):
        return _system_error(error)
    return None


def _system_error(error: OSError) -> str:
    """Return one line on what the operating system refused."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"{one_line(error.filename)}: {one_line(reason)}"
    return f"cannot write: {one_line(reason)}" if error.errno in FULL else one_line(reason)


def _check_working_folder() -> None:
    """Refuse to run in a folder that was removed: oneMKL ends the process there while torch is loaded."""
    try:
        os.getcwd()
    except OSError:
        raise OVSDinoError("the working folder is gone: change to one that exists") from None


def _open_streams() -> bool:
    """Give every closed standard stream /dev/null, and return whether stdout was one.

    A file that is opened while descriptor 1 is free becomes stdout to all native code.
    """
    for _ in range(3):
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
    closed = sys.stdout is None
    if closed:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot write becomes legible
    return closed


def _drop_stdout() -> None:
    """Send what is still buffered to /dev/null, so that the interpreter's last flush does not fail."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # a stream without one, as in tests
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _fail(message: str, code: int, as_json: bool) -> int:
    say(f"error: {message}")
    try:
        if as_json:
            print_json({"error": message})
        sys.stdout.flush()
    except (OSError, ValueError):
        _drop_stdout()
    return code
