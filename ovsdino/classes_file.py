"""Read a file of classes: names, words and colors, as text, YAML or JSON."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import read_json, read_text, reading
from ovsdino.settings import parse_yaml

__all__ = ["SUFFIXES", "Color", "is_classes_file", "read_classes"]

SUFFIXES = (".txt", ".yaml", ".yml", ".json")
KIND = "list of classes"
Color = tuple[int, int, int]
_Entry = tuple[str, tuple[Any, ...], "Color | None"]
HEX = re.compile(r"#[0-9a-fA-F]{6}")


def is_classes_file(classes: object) -> bool:
    """Tell whether classes are given by the path of a file rather than by words: by its suffix."""
    if isinstance(classes, os.PathLike):
        return True
    return isinstance(classes, str) and "," not in classes and classes.strip().lower().endswith(SUFFIXES)


def read_classes(path: str | os.PathLike[str]) -> tuple[list[tuple[str, tuple[Any, ...]]], tuple[Color | None, ...]]:
    """Return the classes of a file.

    A text file has one class on a line, as between the commas of the option: "car|automobile" or
    "static=building|tree"; lines that start with # and empty ones do not count. A YAML or JSON file is a list of words;
    or a mapping from a name to a word, a list of words, nothing (the name is the word), or a mapping with "words" and
    "color" ("#rrggbb" or [r, g, b]). Either may lie under "names", as in the data.yaml of YOLO, where the keys are
    numbers and the values names.

    Args:
        path: The file; its suffix says which form it has.

    Returns:
        Name and words of each class, not checked further; and the color of each, None where none is given.

    Raises:
        OVSDinoError: The file is not there or cannot be read, or an entry has another form.
    """
    file = Path(path)
    shown = one_line(file)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise OVSDinoError(f"{shown}: a file of classes ends in {', '.join(SUFFIXES)}")
    if suffix == ".txt":
        lines = [line.strip() for line in read_text(file, KIND).splitlines()]
        entries: list[_Entry] = [_line(line, shown) for line in lines if line and not line.startswith("#")]
    else:
        entries = _tree(_parsed(file, suffix), shown)
    if not entries:
        raise OVSDinoError(f"{shown}: no classes in this file")
    return [(name, words) for name, words, _ in entries], tuple(color for _, _, color in entries)


def _parsed(file: Path, suffix: str) -> Any:
    if suffix == ".json":
        return read_json(file, KIND)
    if importlib.util.find_spec("yaml") is None:  # a robot's install has no PyYAML
        raise OVSDinoError(f"{one_line(file)}: YAML needs PyYAML: pip install pyyaml, or give a .txt or .json file")
    text = read_text(file, KIND)
    with reading(file, KIND):
        return parse_yaml(text)


def _line(line: str, shown: str) -> _Entry:
    if "," in line:
        raise OVSDinoError(f"{shown}: a comma in {one_line(line, 60)!r}: one class on a line, | between its words")
    name, named, rest = line.partition("=")
    words = tuple(word.strip() for word in (rest if named else line).split("|"))
    return (name.strip() if named else words[0]), words, None


def _tree(tree: Any, shown: str) -> list[_Entry]:
    if isinstance(tree, Mapping) and isinstance(tree.get("names"), (list, Mapping)):
        tree = tree["names"]
    if isinstance(tree, Mapping) and tree and all(type(key) is int for key in tree):
        tree = [tree[key] for key in sorted(tree)]
    if isinstance(tree, list):
        return [_line(entry, shown) if isinstance(entry, str) else _named(entry, shown) for entry in tree]
    if isinstance(tree, Mapping):
        return [_entry(name, value, shown) for name, value in tree.items()]
    raise OVSDinoError(f"{shown}: expected a list of words, or a mapping from names to words")


def _named(entry: Any, shown: str) -> _Entry:
    """Return an entry of a list that is a mapping of one name, or has a "name" with "words" and "color"."""
    if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
        return _entry(entry["name"], {key: value for key, value in entry.items() if key != "name"}, shown)
    if isinstance(entry, Mapping) and len(entry) == 1:
        return _entry(*next(iter(entry.items())), shown)
    raise OVSDinoError(f"{shown}: expected a word or a class, got {one_line(repr(entry), 60)}")


def _entry(name: Any, value: Any, shown: str) -> _Entry:
    if not isinstance(name, str):
        raise OVSDinoError(f"{shown}: the name {one_line(repr(name), 60)} is not text; put it in quotes")
    color = None
    if isinstance(value, Mapping):
        if unknown := value.keys() - {"words", "color"}:
            raise OVSDinoError(
                f"{shown}: class {name!r} has {one_line(sorted(map(str, unknown)), 60)}; known: words, color"
            )
        color = _color(value["color"], name, shown) if "color" in value else None
        value = value.get("words")
    if value is None:
        value = name
    return name, tuple(value) if isinstance(value, list) else (value,), color


def _color(value: Any, name: str, shown: str) -> Color:
    if isinstance(value, str) and HEX.fullmatch(value):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
    if isinstance(value, list) and len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value):
        return value[0], value[1], value[2]
    raise OVSDinoError(
        f'{shown}: the color of {name!r} is {one_line(repr(value), 60)}: expected "#rrggbb" or [r, g, b]'
    )
