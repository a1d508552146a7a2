"""Decoded images in memory, up to a number of bytes."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

__all__ = ["ImageCache", "share_of_machine"]

T = TypeVar("T")


class ImageCache(Generic[T]):
    """Decoded images up to a limit; the least recently used make room.

    Args:
        limit: Bytes kept at most; one entry is kept whatever its size.
        size: Returns the bytes of an entry.
    """

    def __init__(self, limit: int, size: Callable[[T], int]) -> None:
        self.limit, self.size, self.bytes = limit, size, 0
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Return it without its entries: another process makes its own."""
        return {**self.__dict__, "bytes": 0, "_kept": OrderedDict()}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the entry of a key, made when it is not there."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = make()
        self._kept[key] = value
        self.bytes += self.size(value)
        while self.bytes > self.limit and len(self._kept) > 1:
            self.bytes -= self.size(self._kept.popitem(last=False)[1])
        return value


def share_of_machine(megabytes: int, workers: int) -> int:
    """Return one process's bytes of what all processes of a run on this machine may keep together.

    Args:
        megabytes: Of all processes together.
        workers: Processes that read images for each process that trains; with 0 it reads its own.
    """
    trainers = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return megabytes * 1_000_000 // (trainers * max(1, workers))
