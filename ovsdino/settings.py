"""Settings from YAML: typed, bounded, with their place and value in every message.

A setting is a field of a dataclass. Its annotation holds all that is checked:

    lr: Annotated[float, Within(0, 10, above=True)] = 1e-3
    pool: Literal["text", "heads"] = "text"
    stages: Annotated[tuple[StageConfig, ...], Size(1, 100)] = (StageConfig(),)
    vocabulary: Annotated[str, InputPath()] = ""
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import read_bytes, reading

__all__ = [
    "Count",
    "InputPath",
    "Positive",
    "Probability",
    "Share",
    "Size",
    "Weight",
    "Within",
    "anchored",
    "build_config",
    "merged",
    "overridden",
    "parse_yaml",
    "read_yaml",
]

MAX_BYTES = 1_000_000  # of one file; parsing takes some 10 s for each of them
MAX_VALUES = 100_000  # of one file, aliases followed: an alias of aliases can stand for 10^9 of them
MAX_DEPTH = 32
REPR = reprlib.Repr()
REPR.maxstring = REPR.maxother = REPR.maxlong = 60


@dataclass(frozen=True)
class Within:
    """The range of a number: [low, high], or (low, high] where `above` is set. NaN and infinity are never in it."""

    low: float
    high: float
    above: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a finite number is in the range."""
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        return f"{'(' if self.above else '['}{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Size:
    """The least and the largest number of entries of a list, or of characters of a text."""

    least: int
    most: int


@dataclass(frozen=True)
class InputPath:
    """Mark a file or folder that is read. In a YAML file it is relative to that file's folder.

    Attributes:
        when: Another field of its class and the value under which it is a path; None for always.
        words: Values that do not name a file.
    """

    when: tuple[str, str] | None = None
    words: tuple[str, ...] = ()


Count = Annotated[int, Within(0, 1_000_000_000)]
Positive = Annotated[int, Within(1, 1_000_000_000)]
Probability = Annotated[float, Within(0, 1)]
Share = Annotated[float, Within(0, 1, above=True)]
Weight = Annotated[float, Within(0, 1_000_000)]


def build_config(kind: Any, value: Any, where: str) -> Any:
    """Return a value of an annotated type from YAML's value.

    Args:
        kind: A type, with marks of this module in an `Annotated`; or a dataclass of such fields.
        value: The value in the YAML tree.
        where: Its place, for messages; "" at the top.

    Raises:
        OVSDinoError: A key is unknown, a value has the wrong type or is out of range.
    """
    marks: Sequence[Any] = ()
    if typing.get_origin(kind) is Annotated:
        kind, *marks = typing.get_args(kind)
    result = _converted(kind, value, where)
    for mark in marks:
        if isinstance(mark, Size) and not mark.least <= len(result) <= mark.most:
            raise OVSDinoError(f"{where}: expected {mark.least} to {mark.most} entries, got {len(result)}")
        if isinstance(mark, Within):
            places = [f"{where}[{i}]" for i in range(len(result))] if isinstance(result, tuple) else [where]
            for place, number in zip(places, result if isinstance(result, tuple) else [result], strict=True):
                if not mark.holds(number):
                    raise _wrong(place, f"{'a whole number' if kind is int else 'a number'} in {mark}", number)
    return result


def _converted(kind: Any, value: Any, where: str) -> Any:
    """Return a value of a type, its range not checked."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):  # of one type and None
        kind = next(arg for arg in args if arg is not type(None))
        return None if value is None else build_config(kind, value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _built(kind, value, where)
    if origin is Literal:
        if not isinstance(value, str) or value not in args:
            raise _wrong(where, f"{', '.join(args[:-1])} or {args[-1]}", value)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, "a list", value)
        return tuple(build_config(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, "a mapping", value)
        return {str(k): build_config(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float:
        return _number(value, where)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _wrong(where, kind.__name__, value)
    if kind is str and ("\0" in value or not _is_text(value)):
        raise _wrong(where, "text without NUL and lone surrogates", value)
    return value


def _built(kind: type, value: Any, where: str) -> Any:
    """Return a dataclass from a mapping."""
    if not isinstance(value, Mapping):
        raise _wrong(where or "the configuration", "a mapping", value)
    hints = typing.get_type_hints(kind, include_extras=True)
    place = f"{where}." if where else ""
    for key in value:
        if key not in hints:
            raise OVSDinoError(
                f"{f'{where}: ' if where else ''}unknown key {REPR.repr(key)}; known: {', '.join(hints)}"
            )
    return kind(**{k: build_config(hints[k], v, f"{place}{k}") for k, v in value.items()})


def _number(value: Any, where: str) -> float:
    """Return a finite number; YAML 1.1 reads 1e-3 as a text."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        raise _wrong(where, "float", value)
    try:
        number = float(value)
    except ValueError:
        raise _wrong(where, "float", value) from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _wrong(where, "a finite number", value)
    return number


def _wrong(where: str, expected: str, value: Any) -> OVSDinoError:
    try:
        shown = one_line(REPR.repr(value), 200)
    except ValueError:  # an integer of more digits than Python prints
        shown = "a number of thousands of digits"
    return OVSDinoError(f"{where}: expected {expected}, got {shown}")


def _is_text(value: str) -> bool:
    """Return whether a text is valid, or a file name that is not UTF-8 as Python holds it."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping at the top of a YAML file in UTF-8, with or without a byte order mark.

    Raises:
        OVSDinoError: The file is missing, not UTF-8, not YAML, not a mapping, or stands for too many values.
    """
    data = read_bytes(path, "YAML configuration")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise OVSDinoError(
            f"{one_line(path)}: UTF-16, which configurations are not read in; save it as UTF-8 "
            "(PowerShell: Out-File -Encoding utf8)"
        )
    if len(data) > MAX_BYTES:
        raise OVSDinoError(f"{one_line(path)}: {len(data)} bytes are more than a configuration has ({MAX_BYTES})")
    with reading(path, "YAML configuration"):
        tree = parse_yaml(data.decode("utf-8-sig"))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise OVSDinoError(f"{one_line(path)}: expected a mapping at the top")
    return tree


def parse_yaml(text: str) -> Any:
    """Return the value of YAML text.

    Raises:
        ValueError: It is nested too deeply or stands for too many values.
    """
    import yaml  # here, so that a robot's install, which reads no configuration, needs no PyYAML

    tree = yaml.safe_load(text)
    count, level = 0, [tree]
    for _ in range(MAX_DEPTH):
        count += len(level)
        if count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        inner: list[Any] = []
        for node in level:
            inner.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list | set) else ())
            if len(inner) > MAX_VALUES:
                raise ValueError(f"more than {MAX_VALUES} values")
        if not inner:
            return tree
        level = inner
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


def anchored(kind: Any, tree: Any, folder: Path) -> Any:
    """Return a tree in which the relative paths that are read lie in `folder`; see `InputPath`.

    A tree that does not have the shape of `kind` is left as it is: `build_config` refuses it.
    """
    if typing.get_origin(kind) is dict and isinstance(tree, dict):
        return {key: anchored(typing.get_args(kind)[1], value, folder) for key, value in tree.items()}
    if not (dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(tree, dict)):
        return tree
    result = dict(tree)
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if name not in tree:
            continue
        mark = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, InputPath)), None)
        if mark is None:
            result[name] = anchored(hint, tree[name], folder)
        elif tree[name] not in mark.words and (mark.when is None or tree.get(*mark.when) == mark.when[1]):
            result[name] = _anchored_path(tree[name], folder)
    return result


def _anchored_path(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_anchored_path(entry, folder) for entry in value]
    return str(folder / value) if isinstance(value, str) and value and "\0" not in value else value


def merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `tree` with `changes` laid over it, mappings key by key, everything else replaced."""
    result = dict(tree)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `tree` with `key.sub=value` overrides.

    Raises:
        OVSDinoError: An override is not of that form, or goes through something that is not a mapping.
    """
    tree = merged(tree, {})
    for override in overrides:
        key, sep, text = override.partition("=")
        if not sep:
            raise OVSDinoError(f"override {override!r} is not key=value, e.g. optim.steps=100")
        node = tree
        *parents, leaf = key.lstrip("-").split(".")
        for part in parents:
            node[part] = dict(node[part]) if isinstance(node.get(part), dict) else node.get(part, {})
            node = node[part]
            if not isinstance(node, dict):
                raise OVSDinoError(f"override {override!r}: {part!r} is not a mapping")
        with reading(f"override {override!r}", "YAML value"):
            node[leaf] = parse_yaml(text) if text else ""
    return tree
