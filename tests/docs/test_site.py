"""The site of docs/: links and anchors resolve, the menu has every page, the reference every public name."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from scripts import docs_site

ROOT = docs_site.ROOT
NOT_OURS = {".venv", "build", "outputs", "runs", "data", ".git", "exports"}


def markdown() -> list[Path]:
    """Every page of the repository, what is built or installed left out."""
    return sorted(page for page in ROOT.rglob("*.md") if not NOT_OURS & set(page.relative_to(ROOT).parts))


@pytest.mark.parametrize("page", markdown(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_anchor_resolves(page: Path) -> None:
    assert docs_site.broken(page) == []


def test_a_link_to_a_missing_file_folder_or_heading_is_found(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "b.md").write_text("# One\n## A `b`, c\n```\n# not a heading\n```\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[x](b.md) [x](b.md#a-b-c) [x](#here) [x](b.md#not-a-heading) [x](c.md) ![x](d.png) [x](folder)\n\n"
        "`[x](code.md)` [x](https://example.org/e.md)\n\n```\n[x](fence.md)\n```\n\n# Here\n"
    )
    assert docs_site.broken(page) == ["b.md#not-a-heading", "c.md", "d.png", "folder"]


def test_anchors_are_those_of_github() -> None:
    text = "# What `x` is: 1, 2 – 3×\n## It's a_b\n## Same\n### Same\n## See [there](other.md)\n"
    assert docs_site.anchors(text) == {"what-x-is-1-2--3", "its-a_b", "same", "same-1", "see-there"}


def test_the_menu_has_every_page_once() -> None:
    index = docs_site.DOCS / "index.md"
    linked = [docs_site.aim(index, path) for path, _ in docs_site.links(index.read_text(encoding="utf-8"))]
    pages = [path for path in linked if path.suffix == ".md"]
    assert len(pages) == len(set(pages))
    assert {index, *pages} >= set(docs_site.DOCS.glob("*.md")), "a page of docs/ is missing from docs/index.md"
    menu = docs_site.navigation(index.read_text(encoding="utf-8"))
    assert [menu.count(f'"{docs_site.place(page)}"') for page in pages] == [1] * len(pages)


def test_the_pages_of_the_site_link_to_each_other(tmp_path: Path) -> None:
    places = docs_site.gather(tmp_path)
    assert Path("quickstart.md") in places and Path("source/benchmarks/README.md") in places
    for place in places:
        if place.suffix == ".md":
            assert docs_site.broken(tmp_path / place) == [], place


def test_lists_and_tables_get_the_blank_line_that_the_site_needs() -> None:
    text = "text\n- one\n  goes on\n- two\n\n```\ntext\n- code\n```\ntext\n| a |\n|---|\n1. one\n"
    spaced = "text\n\n- one\n  goes on\n- two\n\n```\ntext\n- code\n```\ntext\n\n| a |\n|---|\n\n1. one\n"
    assert docs_site.spaced(text) == spaced


def test_the_reference_has_every_public_name_and_each_has_a_docstring() -> None:
    names = docs_site.public_names((docs_site.DOCS / "api.md").read_text(encoding="utf-8"))
    assert len(names) == len(set(names))
    public = {
        f"{module}.{name}"
        for module in ("ovsdino", "ovsdino.hub", "ovsdino.edge")
        for name in importlib.import_module(module).__all__
    } - {"ovsdino.__version__"}
    assert public <= set(names)
    for name in map(docs_site.source_name, names):
        module, _, last = name.rpartition(".")
        assert inspect.getdoc(getattr(importlib.import_module(module), last)), name
    assert "\n::: ovsdino.ops.mask_pool.mask_pool\n" in docs_site.reference(
        (docs_site.DOCS / "api.md").read_text(encoding="utf-8")
    )


def test_the_site_asks_for_no_fonts_from_elsewhere() -> None:
    settings = (docs_site.DOCS / "zensical.toml").read_text(encoding="utf-8")
    assert "font = false" in settings and "nav = []" in settings
