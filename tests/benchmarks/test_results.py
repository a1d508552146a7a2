"""The files of benchmarks/results: each is read or named by something, and is what its name says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovsdino.benchmarks.lib.report import RESULTS, ROOT

READERS = ("README.md", "benchmarks", "configs", "docs", "ovsdino", "scripts", "tests")


def readers() -> str:
    """Return the text of all sources and pages, the results themselves left out."""
    files = [Path(ROOT / name) for name in READERS]
    found = [path for file in files for path in ([file] if file.is_file() else file.rglob("*"))]
    kinds = (".md", ".py", ".yaml")
    return "\n".join(path.read_text() for path in found if path.suffix in kinds and RESULTS not in path.parents)


def test_every_result_is_named_by_a_page_a_script_or_a_test() -> None:
    text = readers()
    assert [path.name for path in sorted(RESULTS.iterdir()) if path.name not in text] == []


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_result_is_one_json_object(path: Path) -> None:
    assert isinstance(json.loads(path.read_text(encoding="utf-8")), dict)


def test_every_script_is_in_the_readme() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "benchmarks" / "studies").glob("*.py")]
    names = [path.name for path in scripts if path.name != "__init__.py"]
    assert len(names) >= 10 and [name for name in names if f"{name}`" not in text] == []
