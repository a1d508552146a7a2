"""Read ahead and finish behind: a thread makes the next items, or uses up the last ones, while the caller works."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

__all__ = ["behind", "read_ahead"]

P = ParamSpec("P")
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


@contextmanager
def behind(work: Callable[P, object]) -> Iterator[Callable[P, None]]:
    """Give the body a function that hands calls of `work` to a thread, which does them one by one in their order.

    At most three calls wait, and leaving the body waits for all. An error of `work` is raised by a later call or at the
    end.
    """
    with ThreadPoolExecutor(max_workers=1) as worker:
        waiting: list[Future[object]] = []

        def hand_over(*args: P.args, **options: P.kwargs) -> None:
            waiting.append(worker.submit(work, *args, **options))
            if len(waiting) > DEPTH:
                waiting.pop(0).result()

        try:
            yield hand_over
            while waiting:
                waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
