"""The command `ovsdino`: parses the line, runs one of `ovsdino.commands`, turns errors into exit codes.

Exit codes: 0 done, 2 bad usage or bad input (one line on stderr, no traceback), 1 a fault of ours (with its traceback),
130 interrupted. With --json stdout holds exactly one JSON object, {"error": ...} when the command could not be done.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from ovsdino.commands.ablate import Ablate
from ovsdino.commands.common import print_json, say
from ovsdino.commands.data import Data
from ovsdino.commands.doctor import Doctor
from ovsdino.commands.eval import Eval
from ovsdino.commands.masks import Masks
from ovsdino.commands.models import Models
from ovsdino.commands.probe import ProbeLayers
from ovsdino.commands.report import Report
from ovsdino.commands.segment import Segment
from ovsdino.commands.stream import StreamCommand
from ovsdino.commands.text import Text
from ovsdino.commands.train import Train
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.vocabulary import DEFAULT_BACKGROUND

Command = (
    Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[StreamCommand, tyro.conf.subcommand("stream")]
    | Annotated[Text, tyro.conf.subcommand("text")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Masks, tyro.conf.subcommand("masks")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Ablate, tyro.conf.subcommand("ablate")]
    | Annotated[ProbeLayers, tyro.conf.subcommand("probe")]
    | Annotated[Models, tyro.conf.subcommand("models")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)
COMMANDS = (
    "segment",
    "eval",
    "stream",
    "text",
    "data",
    "report",
    "masks",
    "train",
    "ablate",
    "probe",
    "models",
    "doctor",
)
LEFT_OUT = ("rich", "timm", "torch", "torchvision")  # of a robot's install, by `pip install --no-deps` (docs/jetson.md)
DESCRIPTION = "Open-vocabulary segmentation: an image and words in, a mask for each word out."
EXAMPLE = 'ovsdino segment street.jpg --classes "road, car, sky"'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Args:
        argv: arguments after the program's name; those of the process by default.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if args in (["--version"], ["-V"]):
        from ovsdino import __version__

        print(f"ovsdino {__version__}")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        command = parse(args)
        if command is None:
            return 0
        return int(command.run())
    except OVSDinoError as error:
        return _fail(args, one_line(error), 2)
    except KeyboardInterrupt:
        return _fail(args, "interrupted", 130)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the last stop: whatever is left is ours, and the traceback is the report
        if isinstance(error, ModuleNotFoundError) and error.name in LEFT_OUT:
            mend = "install ovsdino with all it depends on; without torch only `ovsdino stream --engine` runs"
            return _fail(args, f"this command needs {error.name}, which is not installed: {mend}", 2)
        traceback.print_exc()
        return _fail(args, f"{type(error).__name__}: {one_line(error)} (a fault of ovsdino, please report it)", 1)


def parse(args: Sequence[str]) -> Any:
    """The command of a line, or None when help was asked for and printed.

    Raises:
        OVSDinoError: bad usage, in one line.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                Command,
                prog="ovsdino",
                description=f"{DESCRIPTION} For example: {EXAMPLE}",
                args=_with_default_background(args),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            return None
        raise OVSDinoError(_usage_error(messages.getvalue(), args)) from None


def _with_default_background(args: Sequence[str]) -> list[str]:
    """Puts the default threshold after a --background that no number follows."""
    filled: list[str] = []
    for index, arg in enumerate(args):
        filled.append(arg)
        if arg == "--background" and not _is_number(args[index + 1] if index + 1 < len(args) else ""):
            filled.append(str(DEFAULT_BACKGROUND))
    return filled


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _usage_error(box: str, args: Sequence[str]) -> str:
    """The parser's framed message as one line, with the command that tells more."""
    words: list[str] = []
    for line in box.splitlines()[1:]:
        inner = line.strip().strip("│").strip()
        if not set(inner) <= set("─-╰╯"):
            words.append(inner)
        elif words:  # the rule before the hints, a blank line, or the frame's end
            break
    command = args[0] if args and args[0] in COMMANDS else ""
    return f"{one_line(' '.join(words), 300) or 'bad usage'}; see ovsdino {command} --help".replace("  ", " ")


def _fail(args: Sequence[str], message: str, code: int) -> int:
    say(f"error: {message}")
    if "--json" in args:
        print_json({"error": message})
    return code


if __name__ == "__main__":
    raise SystemExit(main())
