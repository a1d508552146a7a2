"""Commands and virtual environments for the installation tests."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Environment:
    """A virtual environment and what can be done with it."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def install(self, *what: str | Path, **env: str) -> str:
        """Installs without dependencies, with the build tools at hand; returns pip's output."""
        return check(*pip("--python", self.python, "install", "-v", "--no-build-isolation", "--no-deps", *what), **env)

    def run(self, code: str, cwd: Path) -> str:
        """Run Python code in a folder, and return its output."""
        return check(self.python, "-c", code, cwd=cwd).strip()


def pip(*arguments: str | Path) -> list[str | Path]:
    """Return the pip command of the interpreter that runs the tests."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def attempt(*command: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command with its output captured, both streams together; an empty value takes a variable away."""
    merged = {**os.environ, **env}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={key: value for key, value in merged.items() if value},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def check(*command: str | Path, cwd: Path | None = None, **env: str) -> str:
    """Like `attempt`, but fails the test with the output when the exit code is not 0; returns the output."""
    done = attempt(*command, cwd=cwd, **env)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout
