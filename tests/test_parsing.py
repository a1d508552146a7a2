"""The one parser: a dataclass to its help, and a line to its dataclass or to one line of error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.parsing import Argument, OptionalValue, Repeated, command_help, parse


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


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Options of three states, and of a number or a word."""

    image: Annotated[str, Argument("IMAGE")]
    whole: bool | None = None
    """Take all of it."""
    level: Annotated[float | str | None, OptionalValue("T", 0.5, ("other",))] = None
    """How much."""


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("a", Chosen(image="a")),
        ("--whole a", Chosen(image="a", whole=True)),
        ("a --no-whole", Chosen(image="a", whole=False)),
        ("--level other a", Chosen(image="a", level="other")),
        ("--level a", Chosen(image="a", level=0.5)),
        ("--level 0.2 a", Chosen(image="a", level=0.2)),
        ("--level=other a", Chosen(image="a", level="other")),
    ],
)
def test_an_option_has_three_states_or_takes_a_number_or_a_word(line: str, options: Chosen) -> None:
    assert parse(Chosen, "tool", line.split()) == options
    assert "--whole, --no-whole" in command_help(Chosen, "tool")
    with pytest.raises(OVSDinoError, match="nothing is not FLOAT"):
        parse(Chosen, "tool", ["a", "--level=nothing"])


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """Take cameras."""

    first: Annotated[tuple[str, ...], Argument("SOURCE...")] = ()
    """Sources."""
    source: Annotated[tuple[str, ...], Repeated()] = ()
    """Another."""


def test_a_repeated_option_takes_one_value_each_time_and_leaves_the_arguments_alone():
    assert parse(Cameras, "x", ["a", "--source", "b", "c", "--source=d"]) == Cameras(
        first=("a", "c"), source=("b", "d")
    )
    assert parse(Cameras, "x", []) == Cameras() == parse(Cameras, "x", [])
    assert "--source TEXT " in command_help(Cameras, "x")
