"""mypy sees the folders that setup.py maps into the package, under the names that they are imported by."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def mapped() -> dict[str, str]:
    """Return PACKAGE_DIR of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKAGE_DIR":
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    raise AssertionError("setup.py has no PACKAGE_DIR")


def test_each_folder_is_linked_under_its_name_and_checked() -> None:
    tomllib = pytest.importorskip("tomllib")
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["packages"]
    links = {f"ovsdino.{path.name}": path for path in (ROOT / "scripts" / "mypy" / "ovsdino").iterdir()}
    assert set(checked) == {"ovsdino", *links}
    for name, link in links.items():
        assert link.resolve() == ROOT / mapped()[name]
