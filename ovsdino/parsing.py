"""Turn a command line into a dataclass of options, with plain help and one-line errors.

tyro converts the values. Its framed and colored messages are not shown: the help and the errors are written here, the
same on a terminal, in a pipe, and for any width and encoding.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from ovsdino.errors import OVSDinoError, one_line

__all__ = ["Commands", "Group", "command_help", "overview", "parse", "parse_command", "wants_help"]

Commands = Mapping[str, "type | Group"]

CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
POSITIONAL = get_args(tyro.conf.Positional[int])[1]
TYPE_NAMES = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
HELP = ("-h", "--help")
# tyro's messages on values, as this project says them; one that is not here is shown as it is.
REWORDED = (
    (r"^Error parsing (.+?): no type matching (.+?) could be instantiated from \['?(.*?)'?\]$", r"\1: \3 is not \2"),
    (r"^Missing value for argument '(.+?)'.*$", r"\1 needs a value"),
    (r"^invalid choice '(.*)' for argument '(.+?)'. Expected one of \((.*)\)$", r"\2: \1 is none of \3"),
    (r"^Unrecognized options: (.*)$", r"unexpected argument: \1"),
    (r"^Missing from .*?: *(.*)$", r"missing: \1"),
)
LONGEST_NAME = 24
NARROW = 60
WIDEST = 100


@dataclass(frozen=True, kw_only=True)
class Group:
    """A command that has commands of its own."""

    summary: str
    commands: Commands


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option or argument of a command, as its help shows it."""

    name: str
    value: str
    text: str
    positional: bool
    required: bool
    optional_value: bool
    group: str

    @property
    def usage(self) -> str:
        """Its spelling: ``--output PATH``, or the value's name alone where it is an argument."""
        return self.value if self.positional else f"{self.name} {self.value}".rstrip()


def parse_command(commands: Commands, prog: str, args: Sequence[str], description: str) -> Any:
    """Return the options of the command that a line names, or None when help was asked for and printed.

    Args:
        commands: Classes of options by the command's name, or groups of commands.
        prog: The program, as the user calls it.
        args: What follows it.
        description: What the program does, for its help.

    Raises:
        OVSDinoError: Bad usage, in one line.
    """
    first = args[0] if args else ""
    chosen = commands.get(first)
    if chosen is None:
        if wants_help(args):
            print(overview(commands, prog, description))
            return None
        known = f"known: {', '.join(commands)}; see {prog} --help"
        if not first or first.startswith("-"):
            raise OVSDinoError(f"the command is missing; {known}")
        raise OVSDinoError(f"no such command: {first}{_nearest(first, commands)}; {known}")
    inner = f"{prog} {first}"
    if isinstance(chosen, Group):
        return parse_command(chosen.commands, inner, args[1:], chosen.summary)
    return parse(chosen, inner, args[1:])


def parse(command: Callable[..., Any], prog: str, args: Sequence[str], description: str = "") -> Any:
    """Return a line's options as the dataclass ``command``, or None when help was asked for and printed.

    Args:
        command: A dataclass; the docstring below each field is the option's help.
        prog: The program and command, as the user calls them.
        args: What follows them.
        description: First paragraph of the help. Default: the class's docstring.

    Raises:
        OVSDinoError: Bad usage, in one line.
    """
    if wants_help(args):
        print(command_help(command, prog, description))
        return None
    options = _options(command)
    messages = io.StringIO()
    try:
        # tyro looks at stdout when it decides on colors and frames, so it sees neither stream.
        with _columns(1000), contextlib.redirect_stderr(messages), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(command, prog=prog, args=_with_default_values(args, options), config=CONFIG)
    except SystemExit:
        raise OVSDinoError(f"{_explain(options, args, messages.getvalue())}; see {prog} --help") from None


def wants_help(args: Sequence[str]) -> bool:
    """Return whether a line asks for help."""
    return any(arg in HELP for arg in args)


def overview(commands: Commands, prog: str, description: str) -> str:
    """Return the help of a program with commands: what it does, and a line for each of them."""
    rows = [(name, _summary(command)) for name, command in commands.items()]
    width = _width()
    parts = [
        f"Usage: {prog} COMMAND [OPTIONS]",
        _paragraphs(description, width, ""),
        "Commands:\n" + "\n".join(_row(name, text, width, max(map(len, commands))) for name, text in rows),
        textwrap.fill(f"{prog} COMMAND --help tells the options of a command.", width),
    ]
    return "\n\n".join(parts)


def command_help(command: Callable[..., Any], prog: str, description: str = "") -> str:
    """Return the help of one command: usage, what it does, arguments and options."""
    options = _options(command)
    width = _width()
    arguments = [option for option in options if option.positional]
    usage = " ".join([f"Usage: {prog} [OPTIONS]", *(option.usage for option in arguments)])
    parts = [_paragraphs(usage, width, ""), _paragraphs(description or inspect.getdoc(command) or "", width, "")]
    groups: dict[str, list[Option]] = {"Arguments": arguments, "Options": []}
    for option in options:
        if not option.positional:
            groups.setdefault(option.group or "Options", []).append(option)
    longest = min(max((len(option.usage) for option in options), default=0), LONGEST_NAME)
    for title, members in groups.items():
        if members:
            rows = [_row(option.usage, option.text, width, longest) for option in members]
            parts.append("\n".join([f"{title}:", *rows]))
    return "\n\n".join(parts)


def _options(command: Callable[..., Any], group: str = "") -> list[Option]:
    """Return the options of a dataclass, those of its nested dataclasses as groups of their own."""
    hints = get_type_hints(command, include_extras=True)
    texts = _field_texts(command)
    found: list[Option] = []
    for field in dataclasses.fields(command):  # type: ignore[arg-type]  # tyro takes classes and functions alike
        kind, marks = _unwrapped(hints[field.name])
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            title = (inspect.getdoc(kind) or field.name).split("\n")[0].rstrip(".")
            found += _options(kind, title)
            continue
        shown = next((mark for mark in marks if getattr(mark, "metavar", None)), None)
        named = next((mark.name for mark in marks if getattr(mark, "name", None)), field.name)
        name = named.rstrip("_").replace("_", "-")
        default = field.default if field.default_factory is MISSING else field.default_factory()
        text = texts.get(field.name, "")
        positional = POSITIONAL in marks
        off = kind is bool and default is True
        if off:
            text = f"Do not {text[:1].lower()}{text[1:]}" if text else f"Turn {name} off."
        value = shown.metavar if shown else _value_name(kind, name.upper() if positional else "")
        required = default is MISSING
        if required and not positional:
            text += " (required)"
        elif not required and kind is not bool and "efault" not in text and default not in (None, "", ()):
            text += f" (default: {_written(default)})"
        found.append(
            Option(
                name=f"--no-{name}" if off else f"--{name}",
                value=value,
                text=text.strip(),
                positional=positional,
                required=required and not str(value).endswith("..."),
                optional_value=not positional and str(value).startswith("[") and not str(value).endswith("...]"),
                group=group,
            )
        )
    return found


def _unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    """Return a hint without Annotated and Optional, and the marks that were on it."""
    marks: list[Any] = []
    while True:
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            marks += more
            continue
        members = [member for member in get_args(hint) if member is not NoneType]
        if NoneType in get_args(hint) and len(members) == 1:
            hint = members[0]
            continue
        return hint, marks


def _value_name(kind: Any, fallback: str) -> str:
    """Return what stands for a value in the help: PATH, {a,b}, INT..."""
    if kind is bool:
        return ""
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is tuple:
        members = get_args(kind)
        inner = _value_name(_unwrapped(members[0])[0], fallback)
        return f"{inner}..." if Ellipsis in members else " ".join([inner] * len(members))
    return fallback or TYPE_NAMES.get(kind, "VALUE")


def _written(default: Any) -> str:
    """Return a default as a user would type it."""
    return " ".join(map(str, default)) if isinstance(default, (tuple, list)) else str(default)


def _field_texts(command: Callable[..., Any]) -> dict[str, str]:
    """Return the docstring below each field of a dataclass and of its bases."""
    texts: dict[str, str] = {}
    for cls in reversed(inspect.getmro(command)):  # type: ignore[arg-type]
        if not dataclasses.is_dataclass(cls):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        body = getattr(tree, "body", [])
        for statement, following in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                value = following.value if isinstance(following, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    texts[statement.target.id] = inspect.cleandoc(value.value)
    return texts


def _summary(command: type | Group) -> str:
    """Return one line on a command."""
    if isinstance(command, Group):
        return command.summary
    return (inspect.getdoc(command) or "").split("\n\n")[0].replace("\n", " ")


def _row(name: str, text: str, width: int, longest: int) -> str:
    """Return a name with its text to the right, or below where one of them is too long."""
    below = width < NARROW
    indent = " " * (6 if below else longest + 4)
    body = _paragraphs(text, width, indent)
    if below or len(name) > longest:
        return f"  {name}\n{body}" if body else f"  {name}"
    return f"  {name.ljust(longest)}  {body.lstrip()}".rstrip()


def _paragraphs(text: str, width: int, indent: str) -> str:
    """Wrap a text; blank lines and indented lines stay as they are."""
    lines: list[str] = []
    running: list[str] = []

    def flush() -> None:
        lines.extend(
            textwrap.wrap(
                " ".join(running),
                width,
                initial_indent=indent,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
        running.clear()

    for line in text.splitlines():
        if line.strip() and not line.startswith(" "):
            running.append(line.strip())
            continue
        flush()
        lines.append(f"{indent}{line}".rstrip())
    flush()
    return "\n".join(lines)


def _width() -> int:
    return min(max(shutil.get_terminal_size().columns, 20), WIDEST)


@contextlib.contextmanager
def _columns(count: int) -> Iterator[None]:
    """Make the terminal wide for a while, so that a message stays on its line."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _with_default_values(args: Sequence[str], options: Sequence[Option]) -> list[str]:
    """Put the default after an option with an optional value that no number follows, as after --background."""
    from ovsdino.vocabulary import DEFAULT_BACKGROUND

    optional = {option.name for option in options if option.optional_value}
    filled: list[str] = []
    for index, arg in enumerate(args):
        filled.append(arg)
        if arg in optional and not _is_number(args[index + 1] if index + 1 < len(args) else ""):
            filled.append(str(DEFAULT_BACKGROUND))
    return filled


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _explain(options: Sequence[Option], args: Sequence[str], message: str) -> str:
    """Return one line on what is wrong with a line that tyro refused."""
    given = [arg.split("=")[0].replace("_", "-") for arg in args if arg.startswith("--") and len(arg) > 2]
    names = [option.name for option in options if not option.positional]
    for name in given:
        if name not in names:
            return f"no such option: {name}{_nearest(name, [*names, *HELP])}"
    missing = [option.usage for option in options if option.required and not option.positional]
    missing = [usage for usage in missing if usage.split(" ")[0] not in given]
    if missing:
        return f"missing: {', '.join(missing)}"
    text = _plain(message).rstrip(".")
    arguments = [option.value for option in options if option.required and option.positional]
    if text.startswith("Missing from") and arguments:
        return f"missing: {', '.join(value for value in arguments if value in text)}"
    for pattern, ours in REWORDED:
        text, count = re.subn(pattern, ours, text)
        if count:
            break
    return text or "bad usage"


def _plain(box: str) -> str:
    """Return the first part of tyro's framed message as one line."""
    words: list[str] = []
    for line in box.splitlines()[1:]:
        inner = line.strip(" │|")
        if inner and not set(inner) <= set("─-╰╯+"):
            words.append(inner)
        elif words:  # the rule before the hints, a blank line, or the frame's end
            break
    return one_line(" ".join(words), 300)


def _nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Return a suggestion, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
