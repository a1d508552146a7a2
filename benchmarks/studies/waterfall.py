"""The gain of each optimization of the CPU kernels, one for each row, interleaved in one process.

    python benchmarks/studies/waterfall.py [--quick] [--output benchmarks/results/waterfall_cpu.json] [--write]

`--write` puts the table between the markers of benchmarks/studies/waterfall.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ovsdino.benchmarks.lib.inputs import image_logits, resized
from ovsdino.benchmarks.lib.machine import machine_facts
from ovsdino.benchmarks.lib.op_cases import Setting, attention_cases, guided_cases, pool_cases, preprocess_cases
from ovsdino.benchmarks.lib.report import RESULTS, json_text, placed, save
from ovsdino.benchmarks.lib.timing import interleaved
from ovsdino.console import say
from ovsdino.errors import OVSDinoError
from ovsdino.ops import dispatch, upsample_argmax, use_backend
from ovsdino.parsing import run_script

DOCUMENT = Path(__file__).resolve().parent / "waterfall.md"
MARKER = "benchmarks/studies/waterfall.py --write"

Step = tuple[str, Callable[[], object]]


def set_isa(name: str) -> None:
    """Take the CPU kernels of an instruction set, or of the best one.

    Raises:
        ValueError: The build or this processor has none.
    """
    assert dispatch.native is not None  # `run` has looked
    dispatch.native.set_isa(name)


@contextmanager
def kernels(isa: str, threads: int) -> Iterator[None]:
    """Use the CPU kernels of one instruction set on some threads."""
    before = torch.get_num_threads()
    set_isa(isa)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        set_isa("best")
        torch.set_num_threads(before)


def by(isa: str, threads: int, function: Callable[..., object], *inputs: Any) -> Callable[[], object]:
    def run() -> object:
        with kernels(isa, threads), use_backend("cpu"):
            return function(*inputs)

    return run


def instruction_sets() -> list[str]:
    """Return the instruction sets of the build that this processor has, the least first."""
    found = []
    for name in ("baseline", "avx2", "avx512"):
        try:
            set_isa(name)
        except ValueError:
            continue
        found.append(name)
    set_isa("best")
    return found


def ladder(function: Callable[..., object], *inputs: Any) -> list[Step]:
    """Return the native kernel on one thread by each instruction set, then on all threads."""
    names, threads = instruction_sets(), torch.get_num_threads()
    spoken = {"baseline": "native kernel, baseline instructions, 1 thread", "avx2": "AVX2", "avx512": "AVX-512"}
    steps = [(spoken[name], by(name, 1, function, *inputs)) for name in names]
    return [*steps, (f"{threads} threads", by(names[-1], threads, function, *inputs))]


def unprunable(h: int, w: int) -> torch.Tensor:
    """Return logits of 150 classes that all reach the bar of every cell: high at one corner and low at the next."""
    signs = torch.randint(0, 2, (1, 150, 1, 1)) * 2.0 - 1.0
    board = (torch.arange(h)[:, None] + torch.arange(w)) % 2 * 2.0 - 1.0
    return 10.0 * signs * board + torch.randn(1, 150, h, w)


def upsample_steps() -> Iterator[Step]:
    size, h, w = (1024, 2048), 73, 146
    hard, random = unprunable(h, w), torch.randn(1, 150, h, w)
    real = resized(image_logits("cpu")[0], h, w)
    best, threads = instruction_sets()[-1], torch.get_num_threads()

    def plain(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size, mode="bilinear").argmax(1)

    def label(x: torch.Tensor) -> torch.Tensor:
        return upsample_argmax(x, size)

    yield "interpolate + argmax", lambda: plain(real)
    yield from ladder(label, hard)[:-1]
    yield "classes that cannot win left out, random logits (102 of 150 reach a cell's bar)", by(best, 1, label, random)
    yield "the same, logits of a photograph (2 of 150)", by(best, 1, label, real)
    yield f"{threads} threads", by(best, threads, label, real)


def groups() -> Iterator[tuple[str, list[Step]]]:
    """Yield (title, steps); the first step of each is plain PyTorch."""
    s = Setting(device="cpu", gpu=False)
    yield "`upsample_argmax`, 150×(73×146) → 1024×2048, float32", list(upsample_steps())

    pool = list(pool_cases(s))
    einsum = next(case for case in pool if case.baseline_name.startswith("einsum"))
    index_add = next(case for case in pool if case.baseline_name.startswith("index_add"))
    yield (
        "`mask_pool`, 256 masks of 3 %, 64×64 tokens, C = 768, float32",
        [
            ("einsum on converted masks", partial(einsum.baseline, *einsum.inputs)),
            ("index_add of the set tokens", partial(index_add.baseline, *index_add.inputs)),
            *ladder(einsum.ours, *einsum.inputs),
        ],
    )

    rivals = {case.baseline_name: case for case in attention_cases(s)}
    first = next(iter(rivals.values()))
    yield (
        "`structure_attention`, N = 4096, 4 heads, float32",
        [
            ("N × N bias from differences", lambda: rivals["the float64-safe reference"].baseline(*first.inputs)),
            ("bias from a matrix product", lambda: rivals["N x N bias by matrix product"].baseline(*first.inputs)),
            ("SDPA with that bias", lambda: rivals["SDPA with that bias"].baseline(*first.inputs)),
            ("bias folded into the head size, no N × N", partial(first.ours, *first.inputs)),
        ],
    )

    guided = [c for c in guided_cases(s) if c.case.startswith("19x") and c.baseline_name == "unfold + bmm"]
    for case, title in zip(guided, ("forward", "forward and backward"), strict=True):
        yield (
            f"`guided_upsample`, 19×(32×64) by 4, 64 channels, {title}, float32",
            [
                ("unfold + bmm", partial(case.baseline, *case.inputs)),
                *ladder(case.ours, *case.inputs),
            ],
        )

    for antialias in (False, True):
        chosen = [c for c in preprocess_cases(s) if c.case.startswith("HWC") and ("antialias" in c.case) == antialias]
        libraries = {case.baseline_name: case for case in chosen}
        steps = [(name, partial(case.baseline, *case.inputs)) for name, case in libraries.items()]
        suffix = ", antialias" if antialias else ""
        yield (
            f"`preprocess`, HWC 1080×1920 → 448×448{suffix} (libraries, not steps)",
            [
                *steps,
                ("torch on uint8 (ours)", partial(chosen[0].ours, *chosen[0].inputs)),
            ],
        )


def measure(budget_s: float) -> list[dict[str, Any]]:
    """Return a row for each step: its time, and its gain over the step before and over the first."""
    found = []
    for title, steps in groups():
        times = interleaved([function for _, function in steps], "cpu", budget_s=budget_s)
        for place, ((name, _), ms) in enumerate(zip(steps, times, strict=True)):
            found.append(
                {
                    "group": title,
                    "step": name,
                    "ms": round(ms, 3),
                    "gain": round(times[place - 1] / ms, 2) if place else None,
                    "total": round(times[0] / ms, 1),
                }
            )
            say(f"{title}: {name}: {ms:.2f} ms")
    return found


def table(report: dict[str, Any], source: str) -> str:
    """Return the report in Markdown, one table for each group."""
    facts = report["machine"]
    isa = facts["native"]["isa"]
    lines = [f"{facts['cpu']}, {facts['threads']} threads, {isa}, torch {facts['torch']}; `{source}`.", ""]
    for title in dict.fromkeys(row["group"] for row in report["results"]):
        lines += [f"### {title}", "| step | ms | gain of the step | in all |", "|---|---|---|---|"]
        for row in report["results"]:
            if row["group"] == title:
                gain = "" if row["gain"] is None else f"{row['gain']:g}×"
                lines.append(f"| {row['step']} | {row['ms']:g} | {gain} | {row['total']:g}× |")
        lines.append("")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Waterfall:
    """Measure the steps of each kernel and print their tables."""

    quick: bool = False
    """Repeat less."""
    output: Path = RESULTS / "waterfall_cpu.json"
    """JSON file for --write."""
    write: bool = False
    """Write the JSON, and the tables into waterfall.md."""

    def run(self) -> int:
        if dispatch.native is None:
            raise OVSDinoError(f"the native module is missing: {dispatch.native_error}")
        torch.manual_seed(0)
        report = {"machine": machine_facts(), "results": measure(1.0 if self.quick else 10.0)}
        text = table(report, f"benchmarks/results/{self.output.name}")
        if self.write:
            save(self.output, json_text(report))
            save(DOCUMENT, placed(DOCUMENT.read_text(encoding="utf-8"), MARKER, text))
        print(text)
        return 0


if __name__ == "__main__":
    raise SystemExit(run_script(Waterfall, "waterfall.py"))
