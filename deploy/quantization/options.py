"""Options of a quantization; ONNX is imported only when something is done."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ovsdino.errors import OVSDinoError

if TYPE_CHECKING:
    from ovsdino.deploy.quantization.smoothquant import Linear

__all__ = ["Method", "QuantizeOptions", "Recipe"]

Method = Literal["minmax", "percentile", "entropy"]
LIMITS = {
    "alpha": (0.0, 1.0),
    "percentile": (50.0, 100.0),
    "images": (1, 100_000),
    "keep": (0, 100_000),
    "keep_first": (0, 100_000),
    "keep_last": (0, 100_000),
    "least_features": (1, 100_000),
    "first_convolutions": (0, 100_000),
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
    convolutions: bool = False
    """Quantize the convolutions too, for CPUs: TensorRT does not take the result. Needs a float32 graph."""
    first_convolutions: int = 3
    """With --convolutions: leave the first N in float, nearest to the image."""
    skip_convolutions: tuple[str, ...] = ()
    """With --convolutions: leave those of these names in float, such as "decoder.*"; * and ? match."""
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


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(Recipe):
    """A graph to quantize, the images that its ranges come from, and the comparison of the result."""

    input: Path
    """Graph made by deploy/export_onnx.py, float32 or float16, with its sidecar."""
    calibration: Path | None = None
    """Real images: a folder, or a zip with images/ in it (camvid_train.zip). Without them: refused."""
    output: Path | None = None
    """Default: NAME_int8.onnx next to the input."""
    bank: Path | None = None
    """Text bank for --evaluate and for the comparison of labels. Default: the classes' names through the model that was
    exported; without --evaluate random rows, whose labels change more than those of words."""
    sensitivity: bool = False
    """List how much each linear alone in int8 changes the logits."""
    evaluate: Path | None = None
    """Folder of the data set to score float and int8 graphs on (--dataset), through ONNX Runtime."""
    dataset: str = "camvid"
    """See `ovsdino eval`."""
    limit: int | None = None
    """Score the first N images only."""
    also: tuple[Path, ...] = ()
    """Other graphs to score as well."""
    least_agreement: float = 0.95
    """Refuse to write a graph that agrees with the float one on fewer of the labels of the calibration images."""
