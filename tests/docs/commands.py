"""The commands of the pages: taken out of their fenced blocks, and run or parsed in this process."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovsdino.cli import COMMANDS, main
from ovsdino.parsing import parse, parse_command

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
OPTIONS = {  # the dataclass of a script's options
    "deploy/export_onnx.py": "ExportOnnx",
    "deploy/export_text.py": "ExportText",
    "deploy/export_trt.py": "ExportTrt",
    "deploy/quantize.py": "Quantize",
    "deploy/verify.py": "Verify",
    "benchmarks/latency.py": "Latency",
    "benchmarks/roofline.py": "Roofline",
    "benchmarks/studies/cpu_backends.py": "CpuBackends",
    "benchmarks/studies/serve_soak.py": "ServeSoak",
    "benchmarks/studies/stream_soak.py": "StreamSoak",
    "benchmarks/studies/words.py": "Words",
    "ovsdino.train.pretrain.align": "Align",
    "ovsdino.train.pretrain.distill_text": "DistillText",
}


@dataclass(frozen=True)
class Command:
    """One command of a page, or one block of Python."""

    page: str
    text: str
    python: bool = False

    @property
    def words(self) -> list[str]:
        """The words of its line, comments left out."""
        return shlex.split(self.text, comments=True)


def pages() -> list[str]:
    """README and the pages of docs/, relative to the root."""
    return ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def commands(page: str) -> list[Command]:
    """Every command of a page in its order; a loop is one command."""
    found: list[Command] = []
    for language, body in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        if language == "python":
            found.append(Command(page, body, python=True))
        elif language in ("bash", "sh"):
            found += [Command(page, line) for line in _lines(body)]
    return found


def _lines(body: str) -> Iterator[str]:
    """Yield the commands of a shell block, continued lines, quoted lines and loops put together."""
    waiting, inside = "", False
    for line in body.replace("\\\n", " ").splitlines():
        waiting = f"{waiting}\n{line}" if waiting else line
        bare = line.split(" #")[0].strip()
        inside = (inside or bare.endswith("; do")) and bare != "done"
        if inside or waiting.split(" #")[0].count("'") % 2:
            continue
        if waiting.strip() and not waiting.lstrip().startswith("#"):
            yield waiting
        waiting = ""


def run(words: Sequence[str]) -> tuple[int, str]:
    """Run a command of this project in this process; returns the exit code and what it printed on stdout.

    A word with an asterisk stands for the files that it matches; `> FILE` takes stdout.
    """
    words = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    target = None
    if ">" in words:
        target = Path(words[words.index(">") + 1])
        words = words[: words.index(">")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = _called(words)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(printed.getvalue())
    return code, printed.getvalue()


def _called(words: Sequence[str]) -> int:
    if words[0] == "ovsdino":
        return main(words[1:])
    if words[0] != "python":
        raise ValueError(f"not a command of this project: {words}")
    module = words[1] == "-m"
    name, args = (words[2], words[3:]) if module else (words[1], words[2:])
    before = sys.argv, list(sys.path)
    sys.argv = [name, *args]
    try:
        if module:
            return int(importlib.import_module(name if name != "ovsdino.train" else "ovsdino.train.__main__").main())
        runpy.run_path(name, run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv, sys.path[:] = before
    return 0


def check_options(words: Sequence[str]) -> None:
    """Parse a command without running it.

    Raises:
        OVSDinoError: It has an unknown option or a bad value.
        KeyError: It is a command whose options are unknown here.
    """
    words = words[: words.index(">")] if ">" in words else words
    if words[0] == "torchrun":
        words = ["ovsdino", "train", *words[words.index("ovsdino.train") + 1 :]]
    if words[0] == "ovsdino":
        parse_command(COMMANDS, "ovsdino", words[1:], "")
        return
    if words[1] == "-m":
        parse(getattr(importlib.import_module(words[2]), OPTIONS[words[2]]), words[2], words[3:])
        return
    before, name = list(sys.path), f"documented_{Path(words[1]).stem}"
    spec = importlib.util.spec_from_file_location(name, words[1])
    if spec is None or spec.loader is None:
        raise KeyError(words[1])
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        parse(getattr(module, OPTIONS[words[1]]), words[1], words[2:])
    finally:
        sys.path[:] = before
        del sys.modules[name]
