"""The one parser: a command line in, a dataclass of options out, for every command and script.

A command is a frozen dataclass: a field is an option, the docstring below it is its help, and ``run`` returns the exit
code. argparse does the parsing. Help and errors are plain lines, the same on a terminal, in a pipe, and for any width
and encoding. `ovsdino.console` prints and gives exit codes.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ovsdino.console import run_command
from ovsdino.errors import OVSDinoError

__all__ = [
    "Argument",
    "Commands",
    "Group",
    "OptionalValue",
    "Repeated",
    "command_help",
    "overview",
    "parse",
    "parse_command",
    "run_script",
]

T = TypeVar("T")

TYPE_NAMES = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
HELP = ("-h", "--help")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|nan)")
LONGEST_NAME = 24
NARROW = 60
WIDEST = 100


@dataclass(frozen=True)
class Argument:
    """Mark a field as an argument, known by its place: ``Annotated[str, Argument("CONFIG.yaml")]``."""

    metavar: str
    """Name in the help and in errors."""


@dataclass(frozen=True)
class OptionalValue:
    """Mark an option whose value may be left out: ``Annotated[float | None, OptionalValue("T", 0.5)]``.

    With words that may stand in place of a number, the field is a ``float | str | None``.
    """

    metavar: str
    """Name of the value in the help."""
    value: float
    """Value of the option where no number follows it."""
    words: tuple[str, ...] = ()
    """What may stand in its place."""


@dataclass(frozen=True)
class Repeated:
    """Mark an option that may be given once for each value: ``Annotated[tuple[str, ...], Repeated()]``."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A command that has commands of its own."""

    summary: str
    commands: Commands


Commands = Mapping[str, "type | Group"]


def run_script(command: type, prog: str, argv: Sequence[str] | None = None) -> int:
    """Parse a command line into a dataclass, call its ``run``, and return the exit code (see `run_command`).

    Args:
        command: A dataclass of options; its ``run`` returns an exit code.
        prog: The script as the user calls it, for help and errors.
        argv: Arguments after it; those of the process by default.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if sys.path and sys.path[0] == str(Path(sys.argv[0]).resolve().parent):
        del sys.path[0]  # the script's own folder: deploy/triton is not the compiler

    def body() -> int:
        options = parse(command, prog, args)
        return 0 if options is None else int(options.run())

    return run_command(args, body)


def parse_command(commands: Commands, prog: str, args: Sequence[str], description: str) -> Any:
    """Return the options of the command that a line names, or None when help was asked for and printed.

    Args:
        commands: Classes of options by the command's name, or groups of commands.
        prog: The program, as the user calls it.
        args: Words after it.
        description: First paragraphs of the program's help.

    Raises:
        OVSDinoError: Bad usage, in one line.
    """
    first = args[0] if args else ""
    chosen = commands.get(first)
    if chosen is None:
        if any(arg in HELP for arg in args):
            print(overview(commands, prog, description), end="")
            return None
        known = f"known: {', '.join(commands)}; see {prog} --help"
        if not first or first.startswith("-"):
            raise OVSDinoError(f"the command is missing; {known}")
        raise OVSDinoError(f"no such command: {first}{_nearest(first, commands)}; {known}")
    inner = f"{prog} {first}"
    if isinstance(chosen, Group):
        return parse_command(chosen.commands, inner, args[1:], chosen.summary)
    return parse(chosen, inner, args[1:])


def parse(command: type[T], prog: str, args: Sequence[str]) -> T | None:
    """Return a line's options as the dataclass ``command``, or None when help was asked for and printed.

    Args:
        command: A dataclass. Its docstring and those below its fields are the help; a dataclass among the fields is a
            titled group of options.
        prog: The program and command, as the user calls them.
        args: Words after them.

    Raises:
        OVSDinoError: Bad usage, in one line.
    """
    if any(arg in HELP for arg in args):
        print(command_help(command, prog), end="")
        return None
    arguments = _Parser(prog)
    options = _parser(command, prog, arguments)
    end = args.index("--") if "--" in args else len(args)  # an option would take a word after it
    try:
        found, words = options.parse_known_args(_prepared(options, args[:end]))
        unknown = next((word.split("=")[0] for word in words if word.startswith("-")), None)
        found, rest = arguments.parse_known_args(["--", *words, *args[end + 1 :]], found)
        problem = _problem([*arguments._actions, *options._actions], vars(found), unknown, rest)
    except argparse.ArgumentError as error:
        problem = f"{error.argument_name}: {error.message}"
    if problem:
        raise OVSDinoError(f"{problem}; see {prog} --help") from None
    return _built(command, vars(found))


def overview(commands: Commands, prog: str, description: str) -> str:
    """Return the help of a program with commands: its description, and a line for each command."""
    parser = _Parser(prog, f"{prog} COMMAND [OPTIONS]", description)
    parser.epilog = f"{prog} COMMAND --help lists the options of a command."
    rows = parser.add_argument_group("Commands")
    for name, command in commands.items():
        text = command.summary if isinstance(command, Group) else (inspect.getdoc(command) or "").split("\n\n")[0]
        rows.add_argument(name, metavar=name, help=text)
    return parser.format_help()


def command_help(command: type, prog: str) -> str:
    """Return the help of one command: usage, docstring, arguments and options."""
    return _parser(command, prog).format_help()


class _Layout(argparse.HelpFormatter):
    """Lay out a help: names with their texts to the right, or below where the terminal is narrow."""

    def __init__(self, prog: str) -> None:
        width = min(max(shutil.get_terminal_size().columns, 20), WIDEST)
        super().__init__(prog, max_help_position=6 if width < NARROW else LONGEST_NAME + 4, width=width)

    def _format_usage(self, usage: str | None, *_: Any) -> str:
        return f"{_wrapped(f'Usage: {usage}', self._width)}\n\n"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar)

    def _expand_help(self, action: argparse.Action) -> str:
        return action.help or ""  # not a template: a percent sign is one

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return _wrapped(text, width)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrapped(text, width).splitlines()


def _wrapped(text: str, width: int) -> str:
    """Wrap the paragraphs of a text; blank and indented lines stay as they are, to be copied."""
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    lines: list[str] = []
    for plain, group in itertools.groupby(text.splitlines(), lambda line: line[:1].strip() != ""):
        found = list(group)
        lines += wrapper.wrap(" ".join(found)) if plain else found
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """Parse a line without printing or exiting; nothing is required of argparse, see `_problem`."""

    def __init__(self, prog: str, usage: str = "", description: str | None = None) -> None:
        super().__init__(
            prog, usage, description, formatter_class=_Layout, add_help=False, allow_abbrev=False, exit_on_error=False
        )
        self.color = False  # which Python 3.14 has, on by default


def _parser(command: type, prog: str, arguments: _Parser | None = None) -> _Parser:
    """Return the parser of a dataclass of options; a second parser takes the arguments, if it is given."""
    parser = _Parser(prog, f"{prog} [OPTIONS]", inspect.getdoc(command))
    group = (arguments or parser).add_argument_group("Arguments")
    _add_fields(command, parser, group, parser.add_argument_group("Options"))
    return parser


def _add_fields(command: type, parser: _Parser, arguments: Any, options: Any) -> None:
    """Add the fields of a dataclass to the groups of a parser, those of a nested dataclass to a group of its own."""
    hints, texts = get_type_hints(command, include_extras=True), _field_texts(command)
    for field in dataclasses.fields(command):
        kind, mark = _unwrapped(hints[field.name])
        text = texts.get(field.name, "")
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            title = (inspect.getdoc(kind) or field.name).split("\n")[0].rstrip(".")
            _add_fields(kind, parser, arguments, parser.add_argument_group(title))
        elif isinstance(mark, Argument):
            settings = {"nargs": "?", "type": functools.partial(_value, kind)}
            if get_origin(kind) is tuple:
                settings = {"nargs": "*", "type": functools.partial(_value, get_args(kind)[0])}
            default = () if settings["nargs"] == "*" and field.default is MISSING else field.default
            arguments.add_argument(field.name, metavar=mark.metavar, default=default, help=text, **settings)
            parser.usage = f"{parser.usage} {mark.metavar}"
        else:
            _add_option(options, field, kind, mark, text)


def _add_option(options: Any, field: dataclasses.Field[Any], kind: Any, mark: object, text: str) -> None:
    name, default = field.name.rstrip("_").replace("_", "-"), field.default
    if kind is bool:
        if default is None:  # three states
            options.add_argument(f"--{name}", dest=field.name, action=argparse.BooleanOptionalAction, help=text)
            return
        if default:
            name, text = f"no-{name}", f"Do not {text[:1].lower()}{text[1:]}"
        action = "store_false" if default else "store_true"
        options.add_argument(f"--{name}", dest=field.name, action=action, help=text)
        return
    members = get_args(kind) if get_origin(kind) is tuple else ()
    each = members[0] if members else kind
    metavar = f"{{{','.join(get_args(each))}}}" if get_origin(each) is Literal else TYPE_NAMES[each]
    settings: dict[str, Any] = {"metavar": metavar}
    if isinstance(mark, Repeated):
        settings |= {"action": "append"}
        default = []  # appended to
    elif ... in members:
        settings = {"metavar": f"{metavar}...", "nargs": "*"}
    elif members:
        settings = {"metavar": " ".join([metavar] * len(members)), "nargs": len(members)}
    elif isinstance(mark, OptionalValue):
        settings = {"metavar": f"[{mark.metavar}]", "nargs": "?", "const": mark.value}
    if default is MISSING:
        text = f"{text} (required)"
    elif "efault" not in text and default not in (None, "", (), []):
        text = f"{text} (default: {' '.join(map(str, default)) if members else default})"
    convert: Any = functools.partial(_value, each)
    if isinstance(mark, OptionalValue) and mark.words:
        convert = _NumberOrWord(mark.words)
    options.add_argument(f"--{name}", **settings, dest=field.name, default=default, type=convert, help=text)


@dataclass(frozen=True)
class _NumberOrWord:
    """Convert the value of an option that takes a number or one of some words."""

    words: tuple[str, ...]

    def __call__(self, text: str) -> float | str:
        return text if text in self.words else float(_value(float, text))


def _unwrapped(hint: Any) -> tuple[Any, object]:
    """Return a hint without Annotated and None, and its mark, such as an `Argument`."""
    hint, mark = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
    if NoneType in get_args(hint):
        members = [member for member in get_args(hint) if member is not NoneType]
        hint = members[0]
        assert len(members) == 1 or isinstance(mark, OptionalValue)  # whose words are the second
    return hint, mark


def _value(kind: Any, text: str) -> Any:
    """Return a word as the value of an option."""
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(map(repr, get_args(kind)))}")
        return text
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not {TYPE_NAMES[kind]}") from None


def _field_texts(command: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass and of its bases."""
    texts: dict[str, str] = {}
    for cls in filter(dataclasses.is_dataclass, reversed(inspect.getmro(command))):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        for pair in itertools.pairwise(getattr(tree, "body", [])):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = inspect.cleandoc(text)
    return texts


def _prepared(parser: _Parser, args: Sequence[str]) -> list[str]:
    """Spell options with hyphens, and add the value that may be left out where no number follows.

    argparse would take the word after ``--background`` for its value, though it is an image.
    """
    actions = {action.option_strings[0]: action for action in parser._actions if action.nargs == "?"}
    words = [re.sub(r"^--[\w-]+", lambda name: name[0].replace("_", "-"), word) for word in args]
    for index, (word, following) in enumerate(itertools.zip_longest(words, words[1:], fillvalue="")):
        if word in actions and not NUMBER.fullmatch(following) and following not in _words(actions[word]):
            words[index] = f"{word}={actions[word].const}"
    return words


def _words(action: argparse.Action) -> tuple[str, ...]:
    """Return the words that an option takes in place of a number."""
    return action.type.words if isinstance(action.type, _NumberOrWord) else ()


def _problem(actions: Iterable[argparse.Action], found: Mapping[str, Any], unknown: str | None, rest: list[str]) -> str:
    """Return one line on words that nothing took, or on options that are missing; else nothing."""
    if unknown:
        names = [name for action in actions for name in action.option_strings]
        return f"no such option: {unknown}{_nearest(unknown, [*names, *HELP])}"
    missing = [action for action in actions if found[action.dest] is MISSING]
    if missing:
        return "missing: " + ", ".join(" ".join([*action.option_strings, str(action.metavar)]) for action in missing)
    left = " ".join(word for word in rest if word != "--")
    return f"unexpected argument: {left}" if left else ""


def _built(command: type[T], found: Mapping[str, Any]) -> T:
    """Return a dataclass of options, with the dataclasses in it."""
    values: dict[str, Any] = {}
    for name, kind in get_type_hints(command).items():
        value = _built(kind, found) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else found[name]
        values[name] = tuple(value) if isinstance(value, list) else value
    return command(**values)


def _nearest(word: str, known: Iterable[str]) -> str:
    """Return a suggestion, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
