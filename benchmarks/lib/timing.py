"""Interleaved timing, on the CPU and on CUDA."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., object]


def interleaved(
    functions: Sequence[Function],
    device: str,
    *,
    inputs: tuple = (),
    rounds: int = 0,
    least: int = 3,
    budget_s: float = 2.0,
) -> list[float]:
    """Return the median milliseconds of each function: the medians of `interleaved_samples`, with its arguments."""
    samples = interleaved_samples(functions, device, inputs=inputs, rounds=rounds, least=least, budget_s=budget_s)
    return [statistics.median(taken) for taken in samples]


def interleaved_samples(
    functions: Sequence[Function],
    device: str,
    *,
    inputs: tuple = (),
    rounds: int = 0,
    least: int = 3,
    budget_s: float = 2.0,
) -> list[list[float]]:
    """Return the milliseconds of each call of each function, in turn so that a drift of the machine meets all alike.

    Args:
        functions: Functions to time. Each is called once first to warm up; a first call of more than a quarter of the
            budget counts, so that slow baselines are not called more often than they need be.
        device: "cpu" times calls by the clock. "cuda" times, between two events, the replay of a CUDA graph that calls
            the function on one copy of the inputs after the other, as many as overflow the level 2 cache twice; a
            function that cannot be captured is called in place of its graph.
        inputs: Arguments of every function.
        rounds: Calls of each; 0: as many as fit `budget_s`, at least `least` and at most 200.
        least: See `rounds`.
        budget_s: Seconds for all calls together.
    """
    if device == "cuda":
        copies = rotation(inputs, torch.cuda.get_device_properties(0).L2_cache_size)
        calls = [captured(function, copies) for function in functions]
        taken = call_times(calls, event_time, rounds, least, budget_s)
        return [[ms / len(copies) for ms in times] for times in taken]
    return call_times([partial(function, *inputs) for function in functions], clock_time, rounds, least, budget_s)


def call_times(
    calls: Sequence[Callable[[], object]],
    once: Callable[[Callable[[], object]], float],
    rounds: int,
    least: int,
    budget_s: float,
) -> list[list[float]]:
    """Return the milliseconds of each call of `calls`; `once` gives the seconds of one."""
    first = [once(call) for call in calls]
    slow = max(first) > budget_s / 4
    samples = [[taken] if slow else [] for taken in first]
    cost = sum(first) if slow else sum(once(call) for call in calls)
    if rounds == 0:
        rounds = min(max(int(budget_s / max(cost, 1e-6)), least), 200)
    while len(samples[0]) < rounds:
        for call, taken in zip(calls, samples, strict=True):
            taken.append(once(call))
    return [[seconds * 1e3 for seconds in taken] for taken in samples]


def clock_time(call: Callable[[], object]) -> float:
    """Return the seconds of a call by the clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def event_time(call: Callable[[], object]) -> float:
    """Return the seconds of a call on the device, between events on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def rotation(inputs: tuple, cache_bytes: int) -> list[tuple]:
    """Return the inputs and so many copies that each is out of a cache of this size when its turn comes again."""
    size = sum(x.numel() * x.element_size() for x in inputs if isinstance(x, Tensor))
    if size == 0:
        return [inputs]
    count = min(max(2 * cache_bytes // size + 1, 2), 64)
    return [inputs, *(tuple(copied(x) for x in inputs) for _ in range(count - 1))]


def copied(x: Any) -> Any:
    """Return a copy of a tensor, a leaf if it was one that asks for gradients; anything else as it is."""
    return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


def captured(function: Function, copies: Sequence[tuple]) -> Callable[[], object]:
    """Return a call that replays a CUDA graph of the function on every copy; where that fails, one that calls it."""

    def plain() -> None:
        for inputs in copies:
            function(*inputs)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            function(*copies[0])  # compiles, tunes, allocates
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            plain()
    except RuntimeError:
        torch.cuda.synchronize()
        return plain
    return graph.replay
