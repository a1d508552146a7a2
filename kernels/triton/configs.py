"""Which tile sizes are worth trying: a few for each kernel and width of dtype, the first one the default."""

from __future__ import annotations

import torch

from ovsdino.kernels.tuning import Config

SMALL = Config(32, 32, 4, 1)  # for the interpreter

HALF: dict[str, list[Config]] = {
    "prepare": [Config(128, 0, 4, 1)],
    "forward": [Config(64, 64, 4, 3)],
    "rows": [Config(64, 0, 4, 1)],
    "keys": [Config(32, 64, 4, 3)],
    "queries": [Config(64, 32, 4, 3)],
}
FULL: dict[str, list[Config]] = {
    "prepare": [Config(128, 0, 4, 1)],
    "forward": [Config(32, 16, 4, 2)],
    "rows": [Config(64, 0, 4, 1)],
    "keys": [Config(32, 32, 4, 2)],
    "queries": [Config(32, 32, 4, 2)],
}


def candidates(name: str, dtype: torch.dtype) -> list[Config]:
    """The configurations of one kernel for a dtype."""
    return (FULL if dtype == torch.float32 else HALF)[name]
