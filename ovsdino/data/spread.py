"""Some of many, spread evenly: images to estimate a number on, or to look at."""

from __future__ import annotations

import numpy as np

__all__ = ["spread"]


def spread(count: int, most: int) -> list[int]:
    """Return up to `most` of the indices below `count`, spread evenly from the first to the last, in their order.

    Args:
        count: Of all.
        most: Of those that are wanted, 0 or more.
    """
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
