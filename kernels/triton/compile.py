"""Compile the kernels for a card that is not here: registers, shared memory and spills, from Triton's own compiler.

``python -m ovsdino.kernels.compile`` prints the table of the default tile sizes; not under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ovsdino.kernels.configs import candidates
from ovsdino.kernels.structure_attention import (
    Call,
    Inputs,
    Prepared,
    by_token,
    forward_call,
    keys_call,
    places_call,
    prepare_call,
    queries_call,
    rows_call,
)
from ovsdino.kernels.tiles import RANK
from ovsdino.kernels.tuning import Config

ARCHS = (80, 87, 90)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Dynamic shared memory one block may have, in bytes (CUDA C++ programming guide, compute capabilities).
SHARED_LIMIT = {80: 166_912, 86: 101_376, 87: 166_912, 89: 101_376, 90: 232_448}

_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel, compiled for one card."""

    kernel: str
    dtype: str
    arch: int
    config: Config
    registers: int  # a thread
    shared: int  # bytes a block
    spills: int  # bytes of stack and local memory a thread
    matrix: str  # the matrix instructions, e.g. "HGMMA"; "" if there are none
    turn: dict[str, int]  # instructions of its longest loop by name; none if it has no loop
    sass: str


def calls(dtype: torch.dtype, d: int = 48, dv: int = 64, r: int = 15, tokens: int = 1024) -> list[Call]:
    """Every kernel with the arguments the decoder gives it: q, k and v slices of one projection, four heads."""
    heads = 4
    q, k, v = torch.zeros(1, tokens, heads, 2 * d + dv, dtype=dtype).transpose(1, 2).split([d, d, dv], -1)
    e = torch.zeros(1, tokens, heads, r, dtype=dtype).transpose(1, 2)
    gate = torch.zeros(1, tokens, heads, dtype=dtype).transpose(1, 2)
    inputs = Inputs(q, k, v, e, torch.zeros(heads), gate, 0.125)
    f, level = q.new_zeros(1, heads, tokens, RANK), torch.zeros(1, heads, tokens)
    made, out, plain = Prepared(f, f, level), by_token(q, dv, dtype), by_token(q, dv, torch.float32)
    kept: dict[str, Tensor] = {"weighted": v.contiguous(), "level": level, "delta": level}
    side = f.float()
    return [
        prepare_call(inputs, e, made, 1.0),
        forward_call(inputs, made, made, out, plain, level, keep=False),
        forward_call(inputs, made, made, out, plain, level, keep=True)._replace(name="forward, kept"),
        rows_call(out, inputs, plain, kept["weighted"], level, gate),
        keys_call(inputs, made, made, kept, side, level, torch.empty_like(k), torch.empty_like(v)),
        queries_call(inputs, made, made, kept, side, level, torch.empty_like(q), torch.empty_like(e), level),
        places_call(inputs, made, side, level, torch.empty_like(e), level),
    ]


def compiled(call: Call, arch: int, config: Config) -> Compiled:
    """Compile one kernel as a launch on `arch` would: aligned pointers, ones and multiples of 16 are specialised."""
    constants = call.constants | call.sizes(config)
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    multiple: Any
    for position, name in enumerate(call.kernel.arg_names):
        value = call.arguments.get(name)
        told = not call.kernel.params[position].do_not_specialize  # apart from others by what it is
        if name in constants or (told and isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constants.setdefault(name, 1)
            continue
        if isinstance(value, Tensor):
            signature[name], multiple = f"*{_TYPES[value.dtype]}", value.data_ptr()
        elif isinstance(value, float):
            signature[name], multiple = "fp32", 1
        else:
            signature[name], multiple = "i32", value
        if told and multiple % 16 == 0:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=call.kernel, signature=signature, constexprs=constants, attrs=attributes)
    done = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=config.options())
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        usage = _read("--dump-resource-usage", file.name)
        sass = _read("-sass", file.name)
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    registers, stack, local = (int(found[word]) for word in ("REG", "STACK", "LOCAL"))
    return Compiled(
        kernel=call.name,
        dtype=str(call.dtype)[6:],
        arch=arch,
        config=config,
        registers=registers,
        shared=done.metadata.shared,
        spills=stack + local,
        matrix=", ".join(sorted(set(re.findall(r"\b(HGMMA|HMMA)\b", sass)))),
        turn=turn(sass),
        sass=sass,
    )


def turn(sass: str) -> dict[str, int]:
    """Count the instructions between the longest jump back and where it goes, by name: IADD3.X is an IADD3."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/ +(?:@!?U?P\w+ +)?([A-Z][A-Z0-9]*)(\S*)([^;]*);", sass)
    code = [(int(at, 16), name, rest) for at, name, _, rest in found]
    jumps = [(at, target) for at, name, rest in code if name == "BRA" for target in re.findall(r"0x([0-9a-f]+)", rest)]
    loops = [(at - int(target, 16), at) for at, target in jumps if int(target, 16) < at]
    if not loops:
        return {}
    size, end = max(loops)
    return dict(Counter(name for at, name, _ in code if end - size <= at <= end))


def _read(option: str, path: str) -> str:
    return subprocess.run([_TOOLS / "cuobjdump", option, path], capture_output=True, text=True, check=True).stdout


def compiled_table(
    archs: Sequence[int] = ARCHS, dtypes: Sequence[torch.dtype] = DTYPES, every: bool = False
) -> Iterator[Compiled]:
    """Each kernel for each dtype and card, at its default tile sizes.

    Args:
        archs: compute capabilities, 87 for 8.7.
        dtypes: of q, k and v.
        every: all candidates of the tuner instead of the first ones.
    """
    for arch in archs:
        for dtype in dtypes:
            for call in calls(dtype):
                found = candidates(call.name.split(",")[0], dtype)
                for config in found if every else found[:1]:
                    yield compiled(call, arch, config)


def main() -> None:
    """Print the table, one line a kernel."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--archs", default=",".join(map(str, ARCHS)), help="compute capabilities, e.g. 87,90")
    parser.add_argument("--dtypes", default=",".join(str(x)[6:] for x in DTYPES), help="e.g. float16,float32")
    parser.add_argument("--every", action="store_true", help="all tile sizes that are tried, not the defaults only")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args()
    archs, dtypes = map(int, given.archs.split(",")), [getattr(torch, name) for name in given.dtypes.split(",")]
    for row in compiled_table(list(archs), dtypes, given.every):
        shown = {field.name: getattr(row, field.name) for field in fields(row) if field.name != "sass"}
        text = json.dumps(shown) if given.json else " | ".join(f"{key} {value}" for key, value in shown.items())
        print(text, flush=True)


if __name__ == "__main__":
    main()
