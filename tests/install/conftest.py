"""Copies of the sources and empty virtual environments for the installation tests."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.install.sandbox import ROOT, Environment, check, pip

NOT_COPIED = (".git", ".venv", "build", "dist", "outputs", "runs", "__pycache__", "*.so", "*.egg-info", ".*_cache")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a copy of the sources without anything built."""
    copy = tmp_path / "source"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return copy


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """Make a fresh environment that sees the packages of this interpreter (torch, setuptools, …) but not its ovsdino.

    A folder that a ``.pth`` file names is searched, while ``.pth`` files inside it, such as an editable install's, are
    not read; and an ovsdino of the environment's own comes first.
    """
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Environment(folder)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a folder without sources."""
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


@pytest.fixture
def no_tools(tmp_path: Path) -> Path:
    """Return an empty folder, the whole PATH of a machine without compilers."""
    folder = tmp_path / "no_tools"
    folder.mkdir()
    return folder


@pytest.fixture
def build_wheel(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that builds a wheel from a source tree or an sdist, and returns its path."""

    def build(source: Path, *options: str, **env: str) -> Path:
        folder = tmp_path / "wheels"
        check(*pip("wheel", "-v", "--no-deps", *(options or ["--no-build-isolation"]), "-w", folder, source), **env)
        (wheel,) = folder.glob("ovsdino-*.whl")
        return wheel

    return build
