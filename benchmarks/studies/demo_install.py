"""Size and time of `make demo` on a bare machine: a fresh clone, an empty pip cache, nothing installed but Python.

    python benchmarks/studies/demo_install.py --output benchmarks/results/demo_install.json

The clone is of the checkout's last commit. Sizes are those of the files on disk, as `du` counts them; the time has the
downloads in it, so it depends on the network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovsdino.benchmarks.lib.report import ROOT, ReportOptions
from ovsdino.errors import OVSDinoError
from ovsdino.parsing import run_script


@dataclass(frozen=True, kw_only=True)
class DemoInstall(ReportOptions):
    """Measure `make demo` in a fresh clone with an empty pip cache."""

    python: str = "python3"
    """Interpreter that the demo's environment is made of."""

    def run(self) -> int:
        with tempfile.TemporaryDirectory(prefix="ovsdino-demo-") as folder:
            clone = Path(folder) / "ovsdino"
            subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{ROOT}", str(clone)], check=True)
            return self.publish(measure(clone, self.python), text)


def measure(clone: Path, python: str) -> dict[str, Any]:
    """Run `make demo` in a clone twice, and return seconds and bytes.

    Raises:
        OVSDinoError: It failed.
    """
    sources = disk_bytes(clone)
    first, printed = timed(clone, python)
    if not (clone / "outputs/demo/china_overlay.png").is_file():
        raise OVSDinoError("make demo wrote no overlay")
    again, _ = timed(clone, python)
    return {
        "machine": {"cores": len(os.sched_getaffinity(0)), "python": version(python)},
        "first_s": round(first, 1),
        "again_s": round(again, 1),
        "clone_mb": round(sources / 1e6, 1),
        "environment_mb": round(disk_bytes(clone / "build/demo") / 1e6, 1),
        "all_mb": round(disk_bytes(clone) / 1e6, 1),
        "printed": [line.replace(str(clone), ".") for line in printed],
    }


def timed(clone: Path, python: str) -> tuple[float, list[str]]:
    """Return the seconds of `make demo`, and the lines that it prints.

    Raises:
        OVSDinoError: It failed.
    """
    env = {**os.environ, "PIP_NO_CACHE_DIR": "1"}
    started = time.perf_counter()
    done = subprocess.run(
        ["make", "--no-print-directory", "demo", f"PYTHON={shutil.which(python)}"],
        cwd=clone,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise OVSDinoError(f"make demo ended with {done.returncode}: {done.stdout[-2000:]}")
    return seconds, done.stdout.splitlines()


def disk_bytes(folder: Path) -> int:
    """Return the bytes of a folder's files on disk."""
    found = subprocess.run(["du", "-s", "--block-size=1", str(folder)], check=True, capture_output=True, text=True)
    return int(found.stdout.split()[0])


def version(python: str) -> str:
    """Return an interpreter's version."""
    code = "import platform; print(platform.python_version())"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def text(report: dict[str, Any]) -> str:
    """Return the report as a line for people."""
    return (
        f"make demo: {report['first_s']:.0f} s at first, {report['again_s']:.0f} s again; "
        f"{report['environment_mb']:.0f} MB of environment, {report['all_mb']:.0f} MB with the clone"
    )


if __name__ == "__main__":
    raise SystemExit(run_script(DemoInstall, "demo_install.py"))
