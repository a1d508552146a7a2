"""Plain English: docstrings open with a verb or name the thing, and words that only this project would use stay out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("ovsdino", "deploy", "kernels", "benchmarks", "scripts", "csrc", "configs", "docs", "tests")
SUFFIXES = (".py", ".md", ".h", ".cpp", ".cu", ".yaml")
PRIVATE = {
    "mend, for a remedy": r"\bmend(s|ed|ing)?\b",
    "beside, for next to, with or besides": r"\bbeside\b",
    "is no, for is not": r"(?<!there )(?<!There )\b(is|are) no (?!longer|more|less|fewer|one)",
    "a fault of ours, for an internal error": r"\bfaults? of ours\b",
    "who soon misses": r"\bwho soon\b",
    # "quantised" and "optimiser" are keys of files that exist: sidecars and checkpoints.
    "British spelling": r"(?i)\w*(?:normalis|randomis|initialis|serialis|synchronis|summaris|colour)"
    r"|quantis(?!ed\b)|optimis(?!er\b)",
}
KEYS = re.compile(r"\bcolour(?=[:=])|(?<=\.)colour\b|--colour\b")  # a setting's name, kept for the files that have it
OPENS = re.compile(r"(What|Why|How|Where)\b")


def files() -> list[Path]:
    """The text files of the project's folders and root that people read, this one left out."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    found += [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "setup.py"]
    return sorted(path for path in found if path.name != "test_language.py" and "results" not in path.parts)


@pytest.mark.parametrize("name", PRIVATE)
def test_no_private_words(name: str) -> None:
    pattern, hits = re.compile(PRIVATE[name]), []
    for path in files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(KEYS.sub("", line)):
                hits.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not hits, f"{len(hits)} lines have {name}:\n" + "\n".join(hits)


def test_docstrings_open_with_a_verb_or_the_thing() -> None:
    hits = []
    for path in files():
        if path.suffix != ".py" or "tests" in path.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node) or ""
                if OPENS.match(text):
                    hits.append(f"{path.relative_to(ROOT)}: {text.splitlines()[0][:100]}")
    assert not hits, f"{len(hits)} docstrings open with a question word:\n" + "\n".join(hits)


def test_the_index_of_decisions_lists_every_section_with_its_date() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \d{4}-\d\d-\d\d \| \[(.+)\]\(#", text, re.MULTILINE)
    assert listed == re.findall(r"^## (.+)$", text, re.MULTILINE)
