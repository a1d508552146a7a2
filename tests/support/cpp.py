"""Build and run the programs of deploy/cpp."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "deploy" / "cpp"
NEEDS_A_COMPILER = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("ninja") and shutil.which("c++")), reason="needs CMake and a compiler"
)


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=300, check=False, **options
    )


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Configure the programs, warnings as errors."""
    return run("cmake", "-S", SOURCE, "-B", folder, "-G", "Ninja", "-DCMAKE_CXX_FLAGS=-Werror", *options)


def build(folder: Path, *options: str) -> Path:
    """Build the programs; return their folder."""
    configured = configure(folder, *options)
    assert configured.returncode == 0, configured.stderr
    built = run("cmake", "--build", folder)
    assert built.returncode == 0, built.stdout[-3000:]
    return folder


def refused(program: Path, *arguments: object) -> str:
    """Return the one line of a run that must fail."""
    done = run(program, *arguments)
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr
