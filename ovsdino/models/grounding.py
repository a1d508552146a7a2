"""Words that pixel labels taught lend their rows to words that no image taught.

A text encoder knows that asphalt is tarmac; the image side was only ever told "tarmac". So a name that was in no
training goes over to the taught names that are nearest to it, the more so the nearer they are. With its row r, the
taught rows t_j and the cosines c_j = r . t_j

    r' = (1 - g) r + g sum_j softmax_j(c_j / 0.03) t_j        g = max_j c_j^2        (both sums at length one)

A name that is far from all of them stays where it is, and one that any training showed keeps its row.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LENDS", "borrowed", "grounded_phrases"]

LENDS = "+"  # before a phrase that pixel labels taught
SHARPNESS = 1 / 0.03


@functools.cache
def grounded_phrases() -> dict[str, bool]:
    """Return the phrases that nano was trained on, and whether each lends its row: pixel labels taught it.

    The list is `ovsdino/grounded.txt`; `python -m ovsdino.train.mixed.grounded` writes it.
    """
    text = files("ovsdino").joinpath("grounded.txt").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {line.removeprefix(LENDS).strip(): line.startswith(LENDS) for line in lines}


def borrowed(rows: Tensor, lenders: Tensor) -> Tensor:
    """Return r' of rows r (n, D) and lenders t (m, D), m >= 1, all of length one."""
    import torch.nn.functional as F  # here, for `grounded_phrases` serves the runtime without torch too

    cosines = rows @ lenders.T
    near = F.normalize((cosines * SHARPNESS).softmax(1) @ lenders, dim=-1)
    gate = cosines.amax(1, keepdim=True).clamp_min(0).square()
    return F.normalize((1 - gate) * rows + gate * near, dim=-1)
