"""The Dockerfiles: linted where hadolint is, and their files, extras and commands held against the checkout.

No image was built here: the bases are several GB and come from NVIDIA's registry.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "SHELL", "WORKDIR"}

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return (instruction, its argument) of a Dockerfile, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def test_there_is_one_for_each_jetpack_and_one_for_desktops() -> None:
    assert [path.name for path in FILES] == ["jetpack6.Dockerfile", "jetpack7.Dockerfile", "x86.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_parses_and_ends_in_the_command(path: Path) -> None:
    found = instructions(path)
    assert {word for word, _ in found} <= KNOWN
    assert [word for word, _ in found][:2] == ["ARG", "FROM"] and ("COPY", ". .") in found
    assert ("ENTRYPOINT", '["ovsdino"]') in found and found[-1] == ("CMD", '["doctor"]')
    for word, rest in found:
        if word == "RUN":
            done = subprocess.run(["bash", "-n"], input=rest, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_installs_extras_that_exist_and_on_a_board_no_torch_and_no_opencv(path: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    words = [word for what, rest in instructions(path) if what == "RUN" for word in shlex.split(rest)]
    named = [one for word in words if (match := re.fullmatch(r"\.\[(.+)\]", word)) for one in match[1].split(",")]
    assert named and set(named) <= set(extras)
    if path.stem.startswith("jetpack"):
        assert named == ["jetson"] and not any("opencv-python" in word or word.startswith("torch") for word in words)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(path: Path) -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("needs hadolint on PATH")
    done = subprocess.run(["hadolint", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
