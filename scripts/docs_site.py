"""Gather the Markdown of docs/ for the site generator; `make docs` builds the site of it.

The pages stay readable as they are in the repository. For the site the lists of docs/index.md become the menu, files
outside docs/ that a page links to move to `source/`, links follow them, lists and tables get the blank line that
Python-Markdown asks for, and the names in the tables of docs/api.md get a reference made from their docstrings.

    python scripts/docs_site.py build/site
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CODE = re.compile(r"^(?P<fence>```+|~~~+)[^\n]*\n.*?^(?P=fence)[ \t]*$|`[^`\n]+`|<!--.*?-->", re.M | re.S)
LINK = re.compile(r"(\]\()([^()\s]+)((?:\s+\"[^\"]*\")?\))")
HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*$", re.M)
BLOCK = re.compile(r"(?P<list>[ ]*(?:[-*]|\d+\.) )|(?P<table>\|)")
REFERENCE = "<!-- reference -->"


def blanked(text: str) -> str:
    """Return a page with its code and comments replaced by spaces, so that places stay."""
    return CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def links(text: str) -> Iterator[tuple[str, str]]:
    """Yield (path, anchor) of each link and picture of a page that leads to no other site; either may be empty."""
    for _, target, _ in LINK.findall(blanked(text)):
        if not re.match(r"[a-z][a-z0-9+.-]*:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub, and the site, give to the headings of a page."""
    found: dict[str, int] = {}
    without_code = re.sub(r"^(```+|~~~+).*?^\1[ \t]*$", "", text, flags=re.M | re.S)
    for heading in HEADING.findall(without_code):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{number}" if number else slug for slug, last in found.items() for number in range(last + 1)}


def aim(page: Path, path: str) -> Path:
    """Return the file that a page's link leads to: the page itself without a path, README.md for a folder."""
    target = (page.parent / path).resolve() if path else page
    return target / "README.md" if target.is_dir() else target


def broken(page: Path) -> list[str]:
    """Return the links of a page whose file or anchor does not exist."""
    text, wrong = page.read_text(encoding="utf-8"), []
    for path, anchor in links(text):
        target = aim(page, path)
        if not target.is_file():
            wrong.append(path)
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            wrong.append(f"{path}#{anchor}")
    return wrong


def place(file: Path) -> Path:
    """Return where a file of the repository lies in the site, relative to its root."""
    return file.relative_to(DOCS) if file.is_relative_to(DOCS) else Path("source") / file.relative_to(ROOT)


def spaced(text: str) -> str:
    """Return a page with a blank line before each list and table that follows a paragraph."""
    lines: list[str] = []
    fence, before = "", ""
    for line in text.split("\n"):
        mark = re.match(r"[ ]*(```+|~~~+)", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and line.strip() == fence:
            fence = ""
        elif not fence:
            kind = BLOCK.match(line)
            kind_name = kind.lastgroup or "" if kind else "list" if before == "list" and line.startswith(" ") else ""
            if kind and kind_name != before and lines and lines[-1].strip() and not lines[-1].startswith("#"):
                lines.append("")
            before = kind_name if line.strip() else ""
        lines.append(line)
    return "\n".join(lines)


def reference(page: str) -> str:
    """Return docs/api.md with the docstrings of the names that open its rows, by mkdocstrings."""
    return page.replace(REFERENCE, "\n\n".join(f"::: {source_name(name)}" for name in public_names(page)))


def public_names(page: str) -> list[str]:
    """Return the names that open the rows of docs/api.md."""
    return re.findall(r"^\| `(ovsdino[\w.]*)` \|", page, re.M)


def source_name(name: str) -> str:
    """Return a name as its source has it: the function of an op is in the module that is called as it is."""
    module = ROOT / f"{name.replace('.', '/')}.py"
    return f"{name}.{name.rpartition('.')[2]}" if module.is_file() else name


def navigation(index: str) -> str:
    """Return the menu of the site as TOML: the sections of docs/index.md and the pages that its lists link to."""
    groups = []
    for title, body in re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)*)", index, re.M):
        pages = re.findall(r"^- \[([^\]]+)\]\(([^)#]+)\)", body, re.M)
        entries = [f'{{ "{name}" = "{place(aim(DOCS / "index.md", path))}" }}' for name, path in pages]
        groups.append(f'{{ "{title}" = [{", ".join(entries)}] }}')
    return f'[{{ "Home" = "index.md" }}, {", ".join(groups)}]'


def gather(target: Path) -> list[Path]:
    """Write all files of the site's source into a folder; return their places, sorted.

    Raises:
        SystemExit: A page links to something that does not exist.
    """
    waiting, done = sorted(path for path in DOCS.rglob("*") if path.is_file()), set[Path]()
    wrong: list[str] = []
    while waiting:
        file = waiting.pop()
        if file in done or file.suffix == ".toml":
            continue
        done.add(file)
        out = target / place(file)
        out.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix != ".md":
            shutil.copyfile(file, out)
            continue
        wrong += [f"{file.relative_to(ROOT)}: {link}" for link in broken(file)]
        text = file.read_text(encoding="utf-8")
        text = reference(text) if file == DOCS / "api.md" else text
        waiting += [path for path in {aim(file, path) for path, _ in links(text)} if path.is_file()]
        out.write_text(spaced(relinked(text, file)), encoding="utf-8")
    if wrong:
        raise SystemExit("links that lead nowhere:\n" + "\n".join(sorted(wrong)))
    return sorted(place(file) for file in done)


def relinked(text: str, page: Path) -> str:
    """Return a page whose links lead to the places that files have in the site."""
    plain, parts, last = blanked(text), [], 0
    for found in LINK.finditer(plain):
        path, _, anchor = found[2].partition("#")
        if not path or re.match(r"[a-z][a-z0-9+.-]*:", path):
            continue
        new = os.path.relpath(place(aim(page, path)), place(page).parent) + (f"#{anchor}" if anchor else "")
        parts += [text[last : found.start(2)], new]
        last = found.end(2)
    return "".join([*parts, text[last:]])


def main() -> int:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python scripts/docs_site.py FOLDER")
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    print(f"{len(gather(target / 'pages'))} files in {target}")
    menu = navigation((DOCS / "index.md").read_text(encoding="utf-8"))
    settings = (DOCS / "zensical.toml").read_text(encoding="utf-8")
    (target / "zensical.toml").write_text(settings.replace("nav = []", f"nav = {menu}"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
