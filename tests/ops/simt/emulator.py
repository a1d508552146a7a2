"""structure_attention's CUDA kernels on emulated lanes (simt.h), called on CPU tensors."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
SOURCES = (
    "tests/ops/simt/simt.cpp",
    "tests/ops/simt/structure_attention.cpp",
    "tests/ops/simt/primitives.cpp",
    "csrc/cpu/structure_attention.cpp",
)
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}  # ovsdino::DType

# Planted faults and schedules, in the order of simt.h.
MUTATIONS = (
    "none",
    "no_barrier",
    "no_wait",
    "wait_too_few",
    "unmasked_copy",
    "unmasked_column",
    "not_transposed",
    "shifted_row",
)
SCHEDULES = ("random", "warp_ahead")

Int3, Int4 = ctypes.c_int64 * 3, ctypes.c_int64 * 4


class Arguments(ctypes.Structure):
    """ovsdino::StructureAttention."""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "tokens", "head_dim", "value_dim", "rank")),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "e")),
        *((f"{name}_strides", Int4) for name in ("q", "k", "v", "e")),
        ("lam", ctypes.c_void_p),
        ("gate", ctypes.c_void_p),
        ("gate_strides", Int3),
        ("scale", ctypes.c_float),
        ("out", ctypes.c_void_p),
        ("out_strides", Int4),
        ("lse", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("query_tile", ctypes.c_int32),
    )


class Options(ctypes.Structure):
    """simt::Options."""

    _fields_ = (("mutation", ctypes.c_int32), ("schedule", ctypes.c_int32), ("seed", ctypes.c_uint32))


class Report(ctypes.Structure):
    """simt::Report: faults, and how many passes over the banks of shared memory the accesses took."""

    _fields_ = (
        ("faults", ctypes.c_int64),
        *(
            (f"{kind}_{what}", ctypes.c_int64)
            for kind in ("matrix", "copy", "load")
            for what in ("phases", "wavefronts")
        ),
        ("products", ctypes.c_int64),
        ("first_fault", ctypes.c_char * 256),
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the kernels wrote, and what the emulator saw."""

    out: Tensor
    lse: Tensor
    report: Report


def compile_objects(folder: Path, sources: tuple[str, ...], *flags: str) -> list[str]:
    """Object files of `sources`, compiled with g++ on two threads."""
    common = ["g++", "-std=gnu++17", "-Wall", "-Wextra", "-Wno-psabi", "-fPIC", "-Icsrc/include", "-Itests/ops/simt"]

    def compiled(numbered: tuple[int, str]) -> str:
        target = str(folder / f"{numbered[0]}.o")
        command = [*common, *flags, "-c", numbered[1], "-o", target]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compiled, enumerate(sources)))


def link(objects: list[str], target: Path, *flags: str) -> Path:
    """Links object files with g++."""
    done = subprocess.run(["g++", *flags, *objects, "-o", str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


class Emulator:
    """The shared library, compiled into a folder."""

    def __init__(self, folder: Path) -> None:
        objects = compile_objects(folder, SOURCES, "-O2")
        self.library = ctypes.CDLL(str(link(objects, folder / "simt.so", "-shared")))
        self.library.simt_structure_attention.restype = ctypes.c_bool
        self.library.simt_workspace.restype = ctypes.c_int64
        self.library.simt_workspace.argtypes = [ctypes.c_int64] * 3

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        e: Tensor,
        lam: Tensor,
        gate: Tensor | None,
        scale: float,
        *,
        query_tile: int = 64,
        mutation: str = "none",
        schedule: str = "random",
        seed: int = 0,
        out: Tensor | None = None,
    ) -> Result:
        """Both kernels, block by block; tensors as `structure_attention`, `lam` float32.

        Raises:
            ValueError: the kernel's own check of its arguments failed.
        """
        out = torch.full(v.shape, float("nan"), dtype=q.dtype) if out is None else out
        lse = torch.full(q.shape[:3], float("nan"))
        workspace = torch.full((self.library.simt_workspace(*q.shape[:3]),), 255, dtype=torch.uint8)
        report = self.launch(
            q.data_ptr(), str(q.dtype)[6:], q.shape, q.stride(),
            k.data_ptr(), k.stride(),
            v.data_ptr(), v.shape[-1], v.stride(),
            e.data_ptr(), e.shape[-1], e.stride(),
            lam.data_ptr(),
            0 if gate is None else gate.data_ptr(), (0, 0, 0) if gate is None else gate.stride(),
            scale,
            out.data_ptr(), out.stride(),
            lse.data_ptr(), workspace.data_ptr(), query_tile,
            options=Options(MUTATIONS.index(mutation), SCHEDULES.index(schedule), seed),
        )  # fmt: skip
        return Result(out=out, lse=lse, report=report)

    def launch(
        self,
        q: int,
        dtype: str,
        shape: Sequence[int],
        q_strides: Sequence[int],
        k: int,
        k_strides: Sequence[int],
        v: int,
        value_dim: int,
        v_strides: Sequence[int],
        e: int,
        rank: int,
        e_strides: Sequence[int],
        lam: int,
        gate: int,
        gate_strides: Sequence[int],
        scale: float,
        out: int,
        out_strides: Sequence[int],
        lse: int,
        workspace: int,
        query_tile: int,
        stream: int = 0,
        *,
        options: Options | None = None,
    ) -> Report:
        """`ovsdino._C.structure_attention_cuda` with its arguments in its order; the stream is not looked at.

        Raises:
            ValueError: the kernel's own check of its arguments failed.
        """
        sizes = dict(zip(("batch", "heads", "tokens", "head_dim"), shape, strict=True))
        arguments = Arguments(
            dtype=DTYPES[dtype],
            **sizes,
            value_dim=value_dim,
            rank=rank,
            q=q,
            k=k,
            v=v,
            e=e,
            q_strides=Int4(*q_strides),
            k_strides=Int4(*k_strides),
            v_strides=Int4(*v_strides),
            e_strides=Int4(*e_strides),
            lam=lam,
            gate=gate,
            gate_strides=Int3(*gate_strides),
            scale=scale,
            out=out,
            out_strides=Int4(*out_strides),
            lse=lse,
            workspace=workspace,
            query_tile=query_tile,
        )
        report = Report()
        done = self.library.simt_structure_attention(
            ctypes.byref(arguments), ctypes.byref(options or Options()), ctypes.byref(report)
        )
        if not done:
            raise ValueError(report.first_fault.decode())
        return report
