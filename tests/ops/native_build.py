"""The native sources compiled and linked without Python, for this processor or another."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {"avx2": "-march=x86-64-v3", "avx512": "-march=x86-64-v4"}


def tool(*names: str) -> str:
    for name in names:
        if shutil.which(name):
            return name
    pytest.skip(f"no {' or '.join(names)} here")


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def common(compiler: str, *flags: str) -> list[str]:
    includes = ["-Icsrc", "-Icsrc/cpu", "-Icsrc/include"]
    return [compiler, "-std=gnu++17", "-Wall", "-Wextra", "-Wno-psabi", *includes, *flags]


def compile_objects(
    compiler: str, folder: Path, variants: dict[str, str], *flags: str, program: str = "native"
) -> list[str]:
    """Every CPU source and every file of a program, the inner loops once for each instruction set."""
    wanted: list[tuple[Path, str, list[str]]] = []
    for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
        if source.stem.endswith("_kernel"):
            for isa, option in {"baseline": "", **variants}.items():
                wanted.append((source, f"{source.stem}_{isa}", [f"-DOVSDINO_ISA={isa}", *option.split()]))
        else:
            wanted.append((source, f"cpu_{source.stem}", ["-DOVSDINO_X86_VARIANTS"] if variants else []))
    for source in sorted((ROOT / "tests" / "ops" / program).glob("*.cpp")):
        wanted.append((source, f"check_{source.stem}", []))
    commands = [
        [*common(compiler, *flags), *extra, "-c", str(source), "-o", str(folder / f"{name}.o")]
        for source, name, extra in wanted
    ]
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(run, commands):
            assert done.returncode == 0, done.stderr
    return [str(folder / f"{name}.o") for _, name, _ in wanted]


def link(compiler: str, objects: list[str], program: Path, *flags: str) -> str:
    done = run([*common(compiler, *flags), *objects, "-pthread", "-o", str(program)])
    assert done.returncode == 0, done.stderr
    return str(program)
