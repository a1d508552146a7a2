"""The layers of the source: no import goes upwards, lazily or not, and none in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TREES = {
    "ovsdino": "ovsdino",
    "deploy": "ovsdino.deploy",
    "kernels/triton": "ovsdino.kernels",
    "benchmarks": "ovsdino.benchmarks",
}

# From the bottom up. A room is a module or a package; its modules import from rooms of their own layer and below.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("_C", "errors"),  # _C is the native module
    (
        "io",
        "console",
        "parsing",
        "settings",
        "levels",
        "native",
        "timing",
        "vocabulary",
        "captions",
        "classes_file",
        "contrast",
        "flow",
        "fonts",
        "label_maps",
        "legend",
        "overlay",
    ),
    ("data", "kernels", "ops"),
    ("models",),
    (
        "devices",
        "distributed",
        "edge",
        "formats",
        "labeling",
        "network",
        "options",
        "pipeline",
        "prepared",
        "regions",
        "request",
        "results",
        "text_banks",
        "tracking",
        "windows",
    ),
    (
        "",
        "eval",
        "hub",
        "model_card",
        "serve",
        "stream",
    ),  # "" is the package itself: load, segment, Segmentation, by name
    ("deploy", "train"),
    ("benchmarks", "commands"),
    ("cli", "__main__"),
)


def modules() -> dict[str, Path]:
    """Every module's dotted name and file."""
    found = {"ovsdino._C": ROOT / "csrc" / "bindings.cpp"}
    for folder, package in TREES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def imported(tree: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """The project's own modules that a module imports, at its top, inside a function or for its types alone."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield name


def graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    known = modules()
    sources = {name: path.read_text() if path.suffix == ".py" else "" for name, path in known.items()}
    return {name: set(imported(ast.parse(source), known)) - {name} for name, source in sources.items()}


def room(module: str) -> str:
    """The room of a module: the part of its name after the package's."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def layer_of(module: str) -> int:
    return next(height for height, rooms in enumerate(LAYERS) if room(module) in rooms)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other (strongly connected components of more than one; Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in edges[name]:
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            place = stack.index(name)
            group, stack[place:] = stack[place:], []
            if len(group) > 1:
                found.append(sorted(group))

    for name in edges:
        if name not in order:
            visit(name)
    return found


def test_every_module_has_a_room_and_every_room_a_module() -> None:
    assert {room(module) for module in modules()} == {name for rooms in LAYERS for name in rooms}


def test_no_import_goes_upwards() -> None:
    upwards = [
        f"{module} -> {other}"
        for module, others in sorted(graph().items())
        for other in sorted(others)
        if layer_of(other) > layer_of(module)
    ]
    assert not upwards, "\n".join(upwards)


def test_no_modules_import_each_other() -> None:
    # ovsdino/__init__ names its homes as strings and so imports none of them; a package's __init__ counts as a module.
    assert circles(graph()) == []


def test_circles_are_found() -> None:
    edges: dict[str, set[str]] = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"d"}}
    assert circles(edges) == [["a", "b", "c"]]
    assert circles({**edges, "c": {"d"}}) == []


def test_imports_are_seen_wherever_they_stand() -> None:
    known = dict.fromkeys(("ovsdino", "ovsdino.a", "ovsdino.a.b", "ovsdino.c"), Path())
    code = "import os\nfrom ovsdino.a import b, name\ndef f():\n    import ovsdino.c\n    from ovsdino import load\n"
    assert sorted(imported(ast.parse(code), known)) == ["ovsdino", "ovsdino.a", "ovsdino.a.b", "ovsdino.c"]


def test_the_page_lists_the_layers() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d) \| (.+?) \|", text, re.MULTILINE)
    listed = {int(number): set(re.findall(r"`([^`]+)`", cell)) for number, cell in rows}
    assert listed == {height: {name or "ovsdino" for name in rooms} for height, rooms in enumerate(LAYERS)}


@pytest.mark.parametrize("name", ["ovsdino", "ovsdino.cli", "ovsdino.edge.segmenter"])
def test_the_entrances_exist(name: str) -> None:
    assert name in modules()


def walks() -> dict[str, list[str]]:
    """The steps of each walk of the page."""
    page = (ROOT / "docs" / "architecture.md").read_text().split("## Five walks")[1]
    return {part.split("\n")[0]: re.findall(r"^\d+\. (.+)$", part, re.MULTILINE) for part in page.split("\n### ")[1:]}


def defined(name: str) -> bool:
    """Whether a dotted name is a module, or a class, function or method that one of its modules defines."""
    known, parts = modules(), name.split(".")
    for cut in range(len(parts), 0, -1):
        module = ".".join(parts[:cut])
        if module in known:
            body: list[ast.stmt] = ast.parse(known[module].read_text()).body
            for part in parts[cut:]:
                kinds = (ast.ClassDef, ast.FunctionDef)
                found = [node for node in body if isinstance(node, kinds) and node.name == part]
                if not found:
                    return False
                body = found[-1].body
            return True
    return False


def test_the_walks_lead_through_functions_that_exist() -> None:
    assert len(walks()) == 5
    for walk, steps in walks().items():
        assert 1 < len(steps) <= 10, walk
        for step in steps:
            for name in re.findall(r"`((?:ovsdino|deploy)\.[\w.]+)`", step):
                dotted = name if name.startswith("ovsdino") else f"ovsdino.{name}"
                assert defined(dotted), f"{walk}: {name}"
            for path in re.findall(r"`((?:csrc|configs)/[\w/.]+)`", step):
                assert (ROOT / path).is_file(), f"{walk}: {path}"


def test_a_name_that_no_module_defines_is_found() -> None:
    assert defined("ovsdino.pipeline.Segmenter.segment") and not defined("ovsdino.pipeline.Segmenter.nothing")


def test_no_test_file_is_empty() -> None:
    """An emptied file collects nothing, and nothing fails."""
    empty = [path.name for path in (ROOT / "tests").rglob("test_*.py") if "\ndef test_" not in path.read_text()]
    assert not empty
