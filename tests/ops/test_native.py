"""The native sources by themselves: other processors, sanitizers, and what nvcc makes of the CUDA kernels."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["isa", "host", "mask_pool", "upsample_argmax"]
KERNELS = ["gather_kernel", "upsample_kernel"]

# Most registers a kernel may use: 80 let three blocks of 256 threads share a multiprocessor.
MAX_REGISTERS = 80
MAX_SHARED_BYTES = 20480


def build(compiler: str, folder: Path, *flags: str) -> Path:
    """native_check.cpp with the CPU kernels of the baseline instruction set."""
    common = [
        compiler,
        "-std=gnu++17",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",
        "-Icsrc",
        "-Icsrc/cpu",
        "-Icsrc/include",
        *flags,
    ]
    commands = [[*common, "-c", f"csrc/cpu/{name}.cpp", "-o", str(folder / f"{name}.o")] for name in SOURCES]
    for name in KERNELS:
        commands.append(
            [*common, "-DOVSDINO_ISA=baseline", "-c", f"csrc/cpu/{name}.cpp", "-o", str(folder / f"{name}.o")]
        )
    commands.append([*common, "-c", "tests/ops/native_check.cpp", "-o", str(folder / "check.o")])
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(run, commands):
            assert done.returncode == 0, done.stderr
    program = folder / "check"
    objects = [str(folder / f"{name}.o") for name in (*SOURCES, *KERNELS, "check")]
    done = run([*common, *objects, "-pthread", "-o", str(program)])
    assert done.returncode == 0, done.stderr
    return program


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def tool(*names: str) -> str:
    for name in names:
        if shutil.which(name):
            return name
    pytest.skip(f"no {' or '.join(names)} here")


def test_kernels_agree_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    sanitize = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    # The compiler's own half where there is one is tested from Python; here it is the portable conversion.
    done = run([str(build(tool("g++", "clang++"), tmp_path, *sanitize, "-DOVSDINO_SOFT_HALF"))])
    assert done.returncode == 0 and done.stdout == "0 faults\n", done.stderr


def test_sources_compile_for_aarch64_and_run_there(tmp_path: Path) -> None:
    program = build(tool("aarch64-linux-gnu-g++"), tmp_path, "-O1", "-static")
    done = run([tool("qemu-aarch64", "qemu-aarch64-static"), str(program)])
    assert done.returncode == 0 and done.stdout == "0 faults\n", done.stderr


@pytest.mark.parametrize("source", ["mask_pool", "upsample_argmax"])
def test_cuda_kernels_for_orin_spill_nothing(source: str, tmp_path: Path) -> None:
    nvcc = tool("nvcc")
    out = str(tmp_path / "kernel.cubin")
    flags = ["-std=c++17", "-arch=sm_87", "-cubin", "-Xptxas", "-v", "-Icsrc", "-Icsrc/include"]
    done = run([nvcc, *flags, f"csrc/cuda/{source}.cu", "-o", out])
    assert done.returncode == 0, done.stderr
    report = done.stderr + done.stdout
    kernels = re.findall(r"Used (\d+) registers", report)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    shared = [int(found) for found in re.findall(r"(\d+) bytes smem", report)]
    assert len(kernels) == len(spills) == (3 if source == "mask_pool" else 9)
    assert all(numbers == ("0", "0", "0") for numbers in spills)
    assert max(map(int, kernels)) <= MAX_REGISTERS and max(shared, default=0) <= MAX_SHARED_BYTES
