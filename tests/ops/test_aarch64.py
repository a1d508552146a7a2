"""Labels of the CPU kernels on aarch64, as on a Jetson, against those on this processor: `make test-aarch64`.

Debian's cross compiler builds them, and qemu-user runs them: g++-aarch64-linux-gnu and qemu-user.
"""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from tests.ops.native_build import VARIANTS, compile_objects, link, run, tool

FLAGS = ("-O2", "-static")  # the product's own -O3 takes twice as long to compile


def labels(compiler: str, folder: Path, variants: dict[str, str], emulator: str = "") -> tuple[np.ndarray, str]:
    """Return the labels of all frames, and what the program said."""
    folder.mkdir()
    objects = compile_objects(compiler, folder, variants, *FLAGS, program="aarch64")
    program = link(compiler, objects, folder / "labels", *FLAGS)
    file = folder / "labels.bin"
    done = run([*([emulator] if emulator else []), program, str(file), "best"])
    assert done.returncode == 0, done.stdout + done.stderr
    return np.fromfile(file, np.uint8), done.stdout


@pytest.mark.slow
def test_labels_on_aarch64_are_those_on_this_processor(tmp_path: Path) -> None:
    cross, emulator = tool("aarch64-linux-gnu-g++"), tool("qemu-aarch64", "qemu-aarch64-static")
    variants = VARIANTS if platform.machine() in ("x86_64", "AMD64") else {}
    here, told_here = labels(tool("g++", "clang++"), tmp_path / "here", variants)
    there, told_there = labels(cross, tmp_path / "there", {}, emulator)
    print(f"{here.size} pixels, {np.count_nonzero(here != there)} labels differ")
    assert told_here == told_there
    assert here.size == there.size >= 1_000_000 and len(np.unique(here)) > 15
    assert np.count_nonzero(here != there) == 0
