"""What nvcc makes of every CUDA kernel for Jetson Orin and Hopper, by the code that writes docs/kernels.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import build_native  # noqa: E402
import compile_table  # noqa: E402
from compile_table import Kernel  # noqa: E402

# Threads of a block and blocks a multiprocessor of each kernel's launch bounds; 65 536 registers are theirs.
BOUNDS = {
    "guided": (128, 4),
    "guided_cell_grad": (128, 8),
    "guided_pixel_grad": (128, 3),
    "guided_tensor": (128, 4),
    "mask_pool": (256, 4),
    "mask_pool_backward": (256, 3),
    "prepare_structure": (256, 2),
    "preprocess_pixel": (256, 4),
    "upsample_argmax": (256, 2),
    "upsample_argmax_strip": (256, 2),
}
MOST_SHARED = 48 * 1024  # what a launch gets without asking


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    if build_native.find_nvcc() is None:
        pytest.skip("no nvcc here")
    return compile_table.built_kernels([87, 90]) or compile_table.all_nvcc_kernels([87, 90])


def test_no_kernel_spills(kernels: list[Kernel]) -> None:
    assert [kernel for kernel in kernels if kernel.spills] == []


def test_registers_and_shared_memory_are_within_the_launch_bounds(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        if kernel.name == "structure_attention":  # <AttentionTile<...>, blocks>
            threads, blocks = 128, int(kernel.variant.rsplit(",", 1)[1])
        else:
            threads, blocks = BOUNDS[kernel.name]
        assert kernel.registers <= min(255, 65536 // (threads * blocks) // 8 * 8), kernel
        assert kernel.shared <= MOST_SHARED, kernel


def test_every_source_has_kernels_for_both_architectures(kernels: list[Kernel]) -> None:
    names = {arch: {kernel.name for kernel in kernels if kernel.arch == arch} for arch in (87, 90)}
    assert names[87] == names[90] == {*BOUNDS, "structure_attention"}


REPORT = """
ptxas info    : Compiling entry function 'void ovsdino::(anonymous namespace)::pool_kernel<float, 3>(ovsdino::Op)' for 'sm_87'
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 54 registers, used 1 barriers, 12672 bytes smem, 480 bytes cmem[0]
ptxas info    : Compiling entry function 'void ovsdino::plain(int)' for 'sm_87'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 9 registers, used 0 barriers
"""  # noqa: E501


def test_report_is_read() -> None:
    pool, plain = compile_table.parse(REPORT)
    assert (pool.name, pool.variant, pool.registers, pool.shared, pool.spills) == ("pool", "float, 3", 54, 12672, 28)
    assert (plain.name, plain.variant, plain.registers, plain.shared, plain.spills) == ("plain", "", 9, 0, 0)
    assert "| `pool` | 1 | 12 672 | 28 | 54 |" in compile_table.table([pool, plain])


def test_table_replaces_what_lies_between_the_markers(tmp_path: Path) -> None:
    document = tmp_path / "kernels.md"
    document.write_text(f"before\n{compile_table.BEGIN}\nold\n{compile_table.END}\nafter\n")
    compile_table.write("new\n", document)
    assert document.read_text() == f"before\n{compile_table.BEGIN}\nnew\n{compile_table.END}\nafter\n"
    with pytest.raises(ValueError, match="must hold"):
        document.write_text("no markers")
        compile_table.write("new\n", document)


def test_documented_table_names_every_kernel(kernels: list[Kernel]) -> None:
    documented = compile_table.DOCUMENT.read_text().split(compile_table.BEGIN)[1].split(compile_table.END)[0]
    assert {kernel.name for kernel in kernels} <= {
        line.split("`")[1] for line in documented.splitlines() if "`" in line
    }
