"""Which linears are quantized, and how their ranges are found."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ovsdino.errors import OVSDinoError

if TYPE_CHECKING:
    from ovsdino.deploy.quantization.smoothquant import Linear

__all__ = ["Method", "Recipe"]

Method = Literal["minmax", "percentile", "entropy"]
LIMITS = {
    "alpha": (0.0, 1.0),
    "percentile": (50.0, 100.0),
    "images": (1, 100_000),
    "keep": (0, 100_000),
    "keep_first": (0, 100_000),
    "keep_last": (0, 100_000),
    "least_features": (1, 100_000),
    "threads": (0, 1024),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which linears are quantized, and how their ranges are found."""

    alpha: float = 0.5
    """SmoothQuant's share of the activation's range that moves into the weights; 0 leaves SmoothQuant out."""
    method: Method = "percentile"
    """Range of an activation: its largest value, a percentile of its absolute values, or least relative entropy."""
    percentile: float = 99.999
    """For --method percentile."""
    images: int = 32
    """Calibration images, spread evenly over those given."""
    keep: int = 0
    """Leave the N most sensitive linears in float."""
    keep_first: int = 0
    """Leave the first N linears of the graph in float."""
    keep_last: int = 0
    """Leave the last N linears of the graph in float."""
    skip: tuple[str, ...] = ()
    """Leave linears of these names in float; * and ? match."""
    least_features: int = 16
    """Leave linears with fewer inputs or outputs in float: there is nothing to gain."""
    threads: int = 0
    """Threads of ONNX Runtime; 0: all cores."""

    def check(self) -> None:
        """Refuse a value out of range.

        Raises:
            OVSDinoError: The message names it.
        """
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise OVSDinoError(f"{name} is {value:g}: expected {low:g}..{high:g}")

    def chosen(self, linears: Sequence[Linear]) -> list[Linear]:
        """Return the linears to quantize, before the sensitive ones are taken out.

        Raises:
            OVSDinoError: A name that matches none, or nothing left.
        """
        for pattern in self.skip:
            if not any(fnmatch.fnmatchcase(linear.name, pattern) for linear in linears):
                raise OVSDinoError(f"skip: no linear is named {pattern!r}; --sensitivity lists them")
        inner = linears[self.keep_first : len(linears) - self.keep_last]
        found = [
            linear
            for linear in inner
            if min(linear.shape) >= self.least_features
            and not any(fnmatch.fnmatchcase(linear.name, pattern) for pattern in self.skip)
        ]
        if len(found) <= self.keep:
            raise OVSDinoError(f"{len(found)} linears to quantize and --keep {self.keep}: nothing would be left")
        return found
