"""Registers, shared memory and spills of every GPU kernel, from the compilers alone: no GPU is needed.

    python scripts/compile_table.py [--archs 80 86 87 89 90] [--write]

nvcc compiles each ``csrc/cuda/*.cu``, Triton each kernel of ``kernels/triton`` (sm_80, 87 and 90). ``--write`` puts the
table between the markers of docs/kernels.md. Exit code 1 where a kernel spills, but for Triton's in
float32: without matrix units their sums do not fit.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import build_native

from ovsdino.io.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- compile table: scripts/compile_table.py --write -->", "<!-- end of compile table -->"
TRITON_ARCHS = (80, 87, 90)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel, compiled for one architecture."""

    compiler: str
    name: str
    variant: str  # template arguments, or dtype
    arch: int
    registers: int  # a thread
    shared: int  # bytes a block, static or asked for by the launcher
    spills: int  # bytes of stack, spill stores and spill loads a thread


def sources() -> list[Path]:
    """The CUDA sources."""
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def nvcc_kernels(source: Path, arch: int) -> list[Kernel]:
    """Return the figures of ptxas for the kernels of a source file.

    Raises:
        RuntimeError: no nvcc, or it failed; with its output.
    """
    nvcc = build_native.find_nvcc()
    if nvcc is None:
        raise RuntimeError("nvcc is neither on PATH nor below CUDA_HOME")
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v", "-Icsrc", "-Icsrc/include"]
        command += [str(source), "-o", str(Path(folder) / "kernels.cubin")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{source.name} for sm_{arch}: {done.stderr}")
    return parse(demangled(done.stdout + done.stderr))


def demangled(text: str) -> str:
    """The text with C++ names as a person writes them, where a tool for that is at hand."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        return text
    return subprocess.run([tool], input=text, capture_output=True, text=True, check=True).stdout


def parse(report: str) -> list[Kernel]:
    """The kernels of a ``-Xptxas -v`` report."""
    found = []
    for block in report.split("Compiling entry function")[1:]:
        signature, arch = re.search(r"'(.*)' for 'sm_(\d+)", block).groups()  # type: ignore[union-attr]
        plain = re.sub(r"\(anonymous namespace\)::|ovsdino::|^void ", "", signature)
        name, variant = re.match(r"(\w+)(?:<(.*)>)?", plain.rsplit("(", 1)[0]).groups()  # type: ignore[union-attr]
        stack = sum(int(n) for n in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", block))
        shared = re.search(r"(\d+) bytes smem", block)
        found.append(
            Kernel(
                compiler="nvcc",
                name=name.removesuffix("_kernel"),
                variant=variant or "",
                arch=int(arch),
                registers=int(re.search(r"Used (\d+) registers", block)[1]),  # type: ignore[index]
                shared=int(shared[1]) if shared else 0,
                spills=stack,
            )
        )
    return found


def built_kernels(archs: Sequence[int]) -> list[Kernel] | None:
    """Return the kernels of the built module; None where the sources are newer or other architectures were built."""
    newest = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*") if path.is_file())
    for folder in sorted((ROOT / "build" / "native").glob("*-cuda-*/CMakeFiles/_C.dir/csrc/cuda")):
        reports = [folder / f"{source.name}.o.txt" for source in sources()]
        if all(report.is_file() and report.stat().st_mtime > newest for report in reports):
            kernels = [kernel for report in reports for kernel in parse(demangled(report.read_text()))]
            if {kernel.arch for kernel in kernels} == set(archs):
                return kernels
    return None


def all_nvcc_kernels(archs: Sequence[int]) -> list[Kernel]:
    """Every CUDA kernel for every architecture, two compilers at a time."""
    jobs = [(source, arch) for source in sources() for arch in archs]
    with ThreadPoolExecutor(2) as pool:
        return [kernel for kernels in pool.map(lambda job: nvcc_kernels(*job), jobs) for kernel in kernels]


def all_triton_kernels(archs: Sequence[int]) -> list[Kernel]:
    """Every Triton kernel at its default tile sizes; float32, which runs without matrix units, apart."""
    from ovsdino.kernels.compile import compiled_table

    return [
        Kernel(
            compiler="Triton",
            name=f"{row.kernel}, float32" if row.dtype == "float32" else row.kernel,
            variant=row.dtype,
            arch=row.arch,
            registers=row.registers,
            shared=row.shared,
            spills=row.spills,
        )
        for row in compiled_table(archs)
    ]


def spread(numbers: Iterable[int]) -> str:
    """One number, or the least and the most."""
    low, high = min(found := list(numbers)), max(found)
    return f"{low:,}".replace(",", " ") if low == high else f"{low:,}–{high:,}".replace(",", " ")


def table(kernels: Sequence[Kernel]) -> str:
    """Markdown: a row a kernel, its variants together; registers a thread for each architecture."""
    lines = []
    for compiler in dict.fromkeys(kernel.compiler for kernel in kernels):
        mine = [kernel for kernel in kernels if kernel.compiler == compiler]
        archs = sorted({kernel.arch for kernel in mine})
        lines += [
            "",
            f"| {compiler} kernel | variants | shared bytes | spills | " + " | ".join(f"sm_{a}" for a in archs) + " |",
            "|---|---|---|---|" + "---|" * len(archs),
        ]
        for name in dict.fromkeys(kernel.name for kernel in mine):
            rows = [kernel for kernel in mine if kernel.name == name]
            registers = [spread(row.registers for row in rows if row.arch == arch) for arch in archs]
            lines.append(
                f"| `{name}` | {len({row.variant for row in rows})} | {spread(row.shared for row in rows)} | "
                f"{max(row.spills for row in rows)} | {' | '.join(registers)} |"
            )
    return "\n".join(lines).strip() + "\n"


def write(text: str, document: Path = DOCUMENT) -> None:
    """Replace the text between the markers of a document.

    Raises:
        ValueError: the document has not both markers.
    """
    before = document.read_text(encoding="utf-8")
    if BEGIN not in before or END not in before:
        raise ValueError(f"{document} must hold the lines {BEGIN} and {END}")
    head, rest = before.split(BEGIN, 1)
    with atomic_write(document) as file:
        file.write(f"{head}{BEGIN}\n{text}{END}{rest.split(END, 1)[1]}".encode())


def main() -> int:
    """Compiles, prints the table, and writes it where asked to."""
    parser = argparse.ArgumentParser(description="registers, shared memory and spills of every GPU kernel")
    parser.add_argument("--archs", type=int, nargs="+", default=[80, 86, 87, 89, 90], help="for nvcc")
    parser.add_argument("--write", action="store_true", help="put the table into docs/kernels.md")
    options = parser.parse_args()
    try:
        kernels = all_nvcc_kernels(options.archs)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kernels += all_triton_kernels([arch for arch in options.archs if arch in TRITON_ARCHS])
    text = table(kernels)
    print(text)
    if options.write:
        write(text)
    bad = [kernel for kernel in kernels if kernel.spills and not kernel.name.endswith(", float32")]
    spilling = [f"{kernel.name}<{kernel.variant}> for sm_{kernel.arch}" for kernel in bad]
    if spilling:
        print(f"error: these spill: {', '.join(spilling)}", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
