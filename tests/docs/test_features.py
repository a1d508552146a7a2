"""The table of features: each "yes" names a test that is there, each command is one of ours."""

from __future__ import annotations

import ast
import re

from ovsdino.cli import COMMANDS
from ovsdino.pipeline import Segmenter
from ovsdino.regions import Region
from ovsdino.results import Segmentation
from tests.docs.commands import ROOT

PAGE = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """The cells of each row of a table with a column "shown by"."""
    found = []
    for part in PAGE.split("\n## ")[1:]:
        table = [line for line in part.splitlines() if line.startswith("|")]
        if table[0].endswith("| shown by |"):
            found += [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]
    return found


def test_every_row_is_whole_and_every_yes_is_shown() -> None:
    assert len(rows()) > 40
    for row in rows():
        assert len(row) == 8, row
        feature, own, shown = row[0], row[1], row[-1]
        assert all(row[:-1]), feature
        assert bool(TEST.search(shown)) or own.startswith("no"), f"{feature}: nothing shows it"


def test_every_test_that_is_named_is_there() -> None:
    named = TEST.findall(PAGE)
    assert len(named) > 30
    functions: dict[str, set[str]] = {}
    for file, name in named:
        if file not in functions:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            functions[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in functions[file], f"{file}::{name}"


def test_every_command_and_attribute_that_is_named_is_there() -> None:
    here = PAGE.split("## A call of theirs")[1]
    own = "".join(line.split(" | ")[-1] for line in here.splitlines())
    for target, kind in (("segmenter", Segmenter), ("result", Segmentation), ("region", Region)):
        for name in re.findall(rf"\b{target}\.(\w+)\(", own):
            assert callable(getattr(kind, name)), f"{target}.{name}"
    assert set(re.findall(r"`ovsdino ([a-z]+)", PAGE)) <= COMMANDS.keys()
