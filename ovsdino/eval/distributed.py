"""Evaluation in several processes under torchrun: each takes every n-th image, the sums are added at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import distributed

__all__ = ["ALONE", "Shard", "shard_from_environment"]

WAIT = timedelta(hours=12)  # for the slowest process: the sums meet only once, at the end


@dataclass(frozen=True)
class Shard:
    """One process of several.

    Attributes:
        rank: 0..world - 1.
        world: How many processes share the images.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process prints."""
        return self.rank == 0

    def indices(self, total: int) -> range:
        """Return the images of this process: every `world`-th."""
        return range(self.rank, total, self.world)

    def add_up(self, arrays: Sequence[np.ndarray]) -> None:
        """Replace each array by its sum over the processes, in place; all must call it with the same shapes."""
        if self.world == 1:
            return
        for array in arrays:
            whole = torch.from_numpy(np.ascontiguousarray(array))
            distributed.all_reduce(whole)
            array[...] = whole.numpy()


ALONE = Shard()


@contextlib.contextmanager
def shard_from_environment() -> Iterator[Shard]:
    """Yield this process's share by torchrun's variables; the processes meet through gloo, on the CPU."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2:
        yield ALONE
        return
    distributed.init_process_group("gloo", timeout=WAIT)
    try:
        yield Shard(distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()
