"""Read ahead: a thread makes the next items while the caller works on the current one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["read_ahead"]

T = TypeVar("T")
DEPTH = 3  # items made ahead; a Cityscapes image and its labels are 8 MB


def read_ahead(read: Callable[[int], T], indices: Iterable[int]) -> Iterator[T]:
    """Yield `read(index)` of each index in order, up to three of them made by a thread before they are asked for.

    An error of `read` is raised where its item would have come.
    """
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting: list[Future[T]] = []
        try:
            for index in indices:
                waiting.append(reader.submit(read, index))
                if len(waiting) > DEPTH:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
