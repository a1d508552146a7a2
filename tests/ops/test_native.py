"""The native sources by themselves: other processors, and sanitizers with planted bugs to show that they look."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.ops.native_build import ROOT, VARIANTS, common, compile_objects, link, run, tool

SANITIZE = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# The compiler's own half where there is one is tested from Python; here it is the portable conversion.
SANITIZE_FLAGS = (*SANITIZE, "-DOVSDINO_SOFT_HALF")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[str]]:
    """Compiler, folder, and the object files under ASan and UBSan."""
    compiler, folder = tool("g++", "clang++"), tmp_path_factory.mktemp("sanitized")
    variants = VARIANTS if platform.machine() in ("x86_64", "AMD64") else {}
    return compiler, folder, compile_objects(compiler, folder, variants, *SANITIZE_FLAGS)


@pytest.mark.parametrize("cases", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_kernels_are_right_and_clean_under_address_and_undefined_behaviour_sanitizers(sanitized, cases: int) -> None:
    """With random shapes, strides and dtypes of each op."""
    compiler, folder, objects = sanitized
    program = link(compiler, objects, folder / "check", *SANITIZE_FLAGS)
    # Two processes, each with half of the cases.
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(run, [[program, str(cases // 2), str(1 + half * cases // 2)] for half in (0, 1)])
    for done in halves:
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 7 and all(line.endswith(" 0 faults") for line in lines), done.stdout


@pytest.mark.parametrize(
    ("bug", "shown"),
    [
        ("SHORT_READ", "AddressSanitizer: heap-buffer-overflow"),
        ("OVERFLOW", "signed integer overflow: 2147483647 + 67108863"),
        ("ERROR", "mask_pool: "),
    ],
)
def test_a_planted_bug_is_found_and_named(sanitized, bug: str, shown: str) -> None:
    compiler, folder, objects = sanitized
    armed = folder / f"canary_{bug}.o"
    source = str(ROOT / "tests" / "ops" / "native" / "canary.cpp")
    done = run([*common(compiler, *SANITIZE_FLAGS), f"-DPLANT_{bug}", "-c", source, "-o", str(armed)])
    assert done.returncode == 0, done.stderr
    others = [name for name in objects if not name.endswith("check_canary.o")]
    done = run([link(compiler, [*others, str(armed)], folder / f"armed_{bug}", *SANITIZE_FLAGS), "5"])
    assert done.returncode != 0 and shown in done.stdout + done.stderr
    if bug == "SHORT_READ":  # in a kernel, not in the check
        frames = [line for line in done.stderr.splitlines() if line.strip().startswith(("#0", "#1", "#2", "#3"))]
        assert any("csrc" in line for line in frames[:4]), done.stderr


def test_sources_compile_for_aarch64_and_run_there(tmp_path: Path) -> None:
    compiler, emulator = tool("aarch64-linux-gnu-g++"), tool("qemu-aarch64", "qemu-aarch64-static")
    flags = ("-O1", "-static")
    program = link(compiler, compile_objects(compiler, tmp_path, {}, *flags), tmp_path / "check", *flags)
    done = run([emulator, program, "20"])
    assert done.returncode == 0, done.stdout + done.stderr
