"""The processes of one run, as torchrun starts them; without torchrun a run is one process and all of this is free.

An evaluation adds up its sums at the end. A loss needs little from the other processes: a score, a loss, a weight for
each image, text or mask. So these are gathered whole, every process computes the same loss of the whole batch, and its
gradient reaches its own rows. `DistributedDataParallel` averages the processes' gradients; `gather` scales the own
rows' gradient by the number of processes, so the average is the gradient that one process would have had.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ovsdino.errors import OVSDinoError

# nccl's own is 10 minutes: less than reading a large data set's labels for the first time can take on a slow disk.
TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Ranks:
    """This process among `size`; `local` is its place on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def indices(self, total: int) -> range:
        """Return this process's part of `total` items: every `size`-th."""
        return range(self.rank, total, self.size)


ALONE = Ranks()


def join(backend: str | None = None, timeout: timedelta = TIMEOUT) -> Ranks:
    """Join the group that torchrun announces in the environment.

    Args:
        backend: "gloo" or "nccl"; by default nccl where there is CUDA.
        timeout: For a process that waits for the others.

    Raises:
        OVSDinoError: The variables are there but the group cannot be formed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if not dist.is_initialized():
        try:
            dist.init_process_group(backend or ("nccl" if torch.cuda.is_available() else "gloo"), timeout=timeout)
        except (RuntimeError, ValueError) as error:
            raise OVSDinoError(f"cannot join the group that torchrun announces: {error}") from error
    return Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


def leave() -> None:
    """End the group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined(backend: str | None = None, timeout: timedelta = TIMEOUT) -> Iterator[Ranks]:
    """Yield this process's place in the group while it lasts; see `join`."""
    try:
        yield join(backend, timeout)
    finally:
        leave()


def _world() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _device() -> str:
    """Return where the backend reads tensors."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def gather(x: Tensor) -> Tensor:
    """Return the rows of every process in rank order: (b, ...) -> (size b, ...).

    The gradient of this process's rows is scaled by the number of processes; the other rows carry none.
    """
    rank, size = _world()
    if size == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(size)]
    dist.all_gather(parts, x.detach().contiguous())
    parts[rank] = x.detach() + (x - x.detach()) * size if x.requires_grad else x
    return torch.cat(parts)


def gather_objects(value: Any) -> list[Any]:
    """Return one picklable value of every process, in rank order."""
    _, size = _world()
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value)
    return values


def add_up(arrays: Sequence[np.ndarray]) -> None:
    """Replace each array by its sum over all processes, in place; all must call it with the same shapes."""
    if _world()[1] == 1:
        return
    for array in arrays:
        whole = torch.from_numpy(np.ascontiguousarray(array)).to(_device())
        dist.all_reduce(whole)
        array[...] = whole.cpu().numpy()


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    _, size = _world()
    if size == 1:
        return flag
    value = torch.tensor(float(flag), device=_device())
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def barrier() -> None:
    """Wait until every process is here."""
    if _world()[1] > 1:
        dist.barrier()
