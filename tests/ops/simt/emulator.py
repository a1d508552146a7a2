"""structure_attention's CUDA kernels on emulated lanes (simt.h), called on CPU tensors."""

from __future__ import annotations

import ctypes
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        *((name, ctypes.c_int64) for name in ("batch", "heads", "tokens", "keys", "head_dim", "value_dim", "rank")),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "e", "key_e")),
        *((f"{name}_strides", Int4) for name in ("q", "k", "v", "e", "key_e")),
        ("lam", ctypes.c_void_p),
        ("gate", ctypes.c_void_p),
        ("gate_strides", Int3),
        ("scale", ctypes.c_float),
        ("out", ctypes.c_void_p),
        ("out_strides", Int4),
        ("workspace", ctypes.c_void_p),
    )


class Options(ctypes.Structure):
    """simt::Options."""

    _fields_ = (
        ("mutation", ctypes.c_int32),
        ("schedule", ctypes.c_int32),
        ("seed", ctypes.c_uint32),
        ("queries", ctypes.c_int32),
    )


class Report(ctypes.Structure):
    """simt::Report: faults, passes over the banks of shared memory, loads from global memory and their sectors."""

    _fields_ = (
        ("faults", ctypes.c_int64),
        *(
            (f"{kind}_{what}", ctypes.c_int64)
            for kind in ("matrix", "copy", "load")
            for what in ("phases", "wavefronts")
        ),
        ("products", ctypes.c_int64),
        ("global_loads", ctypes.c_int64 * 5),
        ("global_sectors", ctypes.c_int64 * 5),
        ("first_fault", ctypes.c_char * 256),
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the kernels wrote, and what the emulator saw."""

    out: Tensor
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
    """Link object files with g++."""
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
        key_e: Tensor | None = None,
    ) -> Result:
        """Both kernels, block by block; tensors as `structure_attention`'s, `lam` float32.

        Raises:
            ValueError: the kernel's own check of its arguments failed.
        """
        out = torch.full((*q.shape[:3], v.shape[-1]), float("nan"), dtype=q.dtype) if out is None else out
        optional = {"gate": gate, "key_e": key_e}
        tensors = {"q": q, "k": k, "v": v, "e": e, "out": out} | {n: x for n, x in optional.items() if x is not None}
        arguments = Arguments(
            dtype=DTYPES[str(q.dtype)[6:]],
            **dict(zip(("batch", "heads", "tokens", "head_dim"), q.shape, strict=True)),
            keys=k.shape[2],
            value_dim=v.shape[-1],
            rank=e.shape[-1],
            lam=lam.data_ptr(),
            scale=scale,
            **{name: x.data_ptr() for name, x in tensors.items()},
            **{f"{name}_strides": (Int3 if name == "gate" else Int4)(*x.stride()) for name, x in tensors.items()},
        )
        workspace = torch.full((self.library.simt_workspace(ctypes.byref(arguments)),), 255, dtype=torch.uint8)
        arguments.workspace = workspace.data_ptr()
        options = Options(MUTATIONS.index(mutation), SCHEDULES.index(schedule), seed, query_tile)
        report = self.launch(arguments, options)
        return Result(out=out, report=report)

    def launch(self, arguments: Arguments, options: Options | None = None) -> Report:
        """Run the kernels on the arguments of one call.

        Raises:
            ValueError: the kernel's own check of its arguments failed.
        """
        report = Report()
        chosen = options or Options(queries=64)
        if not self.library.simt_structure_attention(
            ctypes.byref(arguments), ctypes.byref(chosen), ctypes.byref(report)
        ):
            raise ValueError(report.first_fault.decode())
        return report


def from_native(op: Any) -> Arguments:
    """Return the fields of an `ovsdino._C.StructureAttention`."""
    values = {name: getattr(op, name) for name, _ in Arguments._fields_}
    strides = {name: (Int3 if name == "gate_strides" else Int4)(*x) for name, x in values.items() if "strides" in name}
    return Arguments(**{**values, **strides, "dtype": DTYPES[op.dtype]})
