"""The tile sizes that are worth trying: a few for each kernel and width of dtype, the first one the default.

Chosen without a card, from what the compiler makes of them (`compile`):

- forward: 64 queries leave sm_90 three programs of four warps on a multiprocessor (128 registers a thread, 57 KB), so
  that one's exponentials hide behind another's products. sm_80 needs 236 registers, two programs; bound to 168, three.
  128 queries read the keys half as often, 32 give the most programs where batch, heads and tokens are few. 128 keys,
  three tiles in flight, were the fastest on an H200 at 4 096 tokens.
- keys and queries hold two tiles of logits and two accumulators: 64 x 64 fills the registers of sm_87 and beyond (16
  bytes spilled), so the default streams 32 at a time. Bound to 168 registers, queries have three programs on sm_80 too.
- float32 runs on the plain multipliers, which hold whole rows of operands in registers: small tiles, and products over
  16 columns at a time.
"""

from __future__ import annotations

import torch

from ovsdino.kernels.tuning import Config

SMALL = Config(32, 32, 4, 1)  # for the interpreter

HALF: dict[str, list[Config]] = {
    "prepare": [Config(128, 0, 4, 1)],
    "forward": [
        Config(64, 64, 4, 3),
        Config(64, 64, 4, 3, 168),
        Config(64, 128, 4, 2),
        Config(64, 128, 4, 3),
        Config(128, 64, 8, 3),
        Config(128, 64, 4, 3),
        Config(128, 128, 8, 2),
        Config(32, 64, 4, 3),
    ],
    "rows": [Config(64, 0, 4, 1)],
    "places": [Config(0, 128, 4, 1)],
    "keys": [Config(32, 64, 4, 3), Config(64, 64, 4, 3), Config(64, 64, 8, 2), Config(64, 128, 8, 2)],
    "queries": [Config(64, 32, 4, 3, 168), Config(64, 64, 4, 3), Config(64, 64, 8, 2), Config(128, 64, 8, 2)],
}
FULL: dict[str, list[Config]] = {
    "prepare": [Config(128, 0, 4, 1)],
    "forward": [Config(32, 16, 4, 1), Config(32, 16, 8, 1)],  # 8 warps spill 8 bytes on sm_87
    "rows": [Config(64, 0, 4, 1)],
    "places": [Config(0, 128, 4, 1)],
    "keys": [Config(16, 32, 4, 1)],
    "queries": [Config(32, 16, 4, 1)],
}


def candidates(name: str, dtype: torch.dtype) -> list[Config]:
    """Return the configurations of one kernel for a dtype."""
    return (FULL if dtype == torch.float32 else HALF)[name]
