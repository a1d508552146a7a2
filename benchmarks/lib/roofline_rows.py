"""The roofline: what a device can do at best with what a model costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ovsdino.benchmarks.lib.costs import Cost, count, plain_vit, weights_of
from ovsdino.errors import OVSDinoError
from ovsdino.models.backbone import ViTBackbone
from ovsdino.models.zoo import build_model

__all__ = ["DEVICES", "EFFICIENCY", "Device", "Row", "committed_rows", "plain_row", "zoo_row"]

# Share of the compute peak that published engines reach on Orin: NanoOWL B/16 at 768 px in 40 ms on AGX (33 %),
# ViT-B/16 at 224 px in 5.68 ms on Orin Nano Super (37 %).
EFFICIENCY = 0.35


@dataclass(frozen=True)
class Device:
    """Peak rates of a device.

    Attributes:
        name: The device.
        float16_tflops: Dense rate of the tensor cores, 10^12 operations a second.
        int8_tops: The same in INT8.
        bandwidth_gbs: Bandwidth of its memory, 10^9 bytes a second.
        source: Origin of the figures.
    """

    name: str
    float16_tflops: float
    int8_tops: float
    bandwidth_gbs: float
    source: str


# Orin's rates are SMs × clock × 2048 float16 operations (compute capability 8.7, four tensor cores an SM), and twice
# that in INT8, without sparsity; the advertised TOPS are with sparsity and include the DLAs.
DEVICES = (
    Device("AGX Orin 64 GB", 42.6, 85.0, 204.8, "16 SMs × 1.30 GHz; Jetson AGX Orin series data sheet"),
    Device("Orin NX 16 GB", 15.0, 30.1, 102.4, "8 SMs × 0.918 GHz; Jetson Orin NX series data sheet"),
    Device("Orin NX 16 GB Super", 19.2, 38.4, 102.4, "8 SMs × 1.173 GHz: JetPack 6.2's MAXN_SUPER"),
    Device("Orin Nano Super", 16.7, 33.4, 102.0, "8 SMs × 1.02 GHz: JetPack 6.2's MAXN_SUPER"),
    Device("H200", 989.0, 1979.0, 4800.0, "H200 SXM data sheet, dense"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model at one size.

    Attributes:
        model: Name in the zoo, or of a plain transformer.
        height: Of the input, in pixels.
        width: Likewise.
        classes: Rows of the text bank; None without one.
        tokens: Tokens that attend to each other in the backbone; 0 for a CNN.
        parts: Cost of each part.
        weights: Parameters of the linear layers, and the others.
    """

    model: str
    height: int
    width: int
    classes: int | None
    tokens: int
    parts: dict[str, Cost] = field(repr=False)
    weights: tuple[int, int]

    @property
    def total(self) -> Cost:
        return Cost(
            **{f.name: sum(getattr(part, f.name) for part in self.parts.values()) for f in dataclasses.fields(Cost)}
        )

    def on(self, device: Device) -> dict[str, dict[str, float]]:
        """Return milliseconds at best and expected, in float16, and with linear layers in INT8."""
        cost = self.total
        linear, other = cost.linear / 1e9, cost.other / 1e9  # over TFLOPS: milliseconds
        at = {
            "float16": ((linear + other) / device.float16_tflops, self.megabytes("float16")),
            "int8": (linear / device.int8_tops + other / device.float16_tflops, self.megabytes("int8")),
        }
        found = {}
        for precision, (compute, megabytes) in at.items():
            memory = megabytes / device.bandwidth_gbs
            bound = max(compute, memory)
            times = {"compute": compute, "memory": memory, "bound": bound, "expected": bound / EFFICIENCY}
            found[precision] = {f"{name}_ms": round(value, 4) for name, value in times.items()}
        return found

    def megabytes(self, precision: str) -> float:
        """Return weights and activations moved, in 10^6 bytes; biases and norms count with the weights."""
        cost, size = self.total, 1 if precision == "int8" else 2
        linear = self.weights[0] + cost.linear_elements
        return (linear * size + (self.weights[1] + cost.other_elements) * 2) / 1e6

    def to_dict(self, devices: Sequence[Device] = DEVICES) -> dict[str, Any]:
        cost = self.total
        return {
            "model": self.model,
            "height": self.height,
            "width": self.width,
            "classes": self.classes,
            "tokens": self.tokens,
            "gflop": round(cost.flops / 1e9, 3),
            "gflop_linear": round(cost.linear / 1e9, 3),
            "gflop_parts": {name: round(part.flops / 1e9, 3) for name, part in self.parts.items()},
            "parameters_million": round(sum(self.weights) / 1e6, 3),
            "weights_mb": {"float16": _r(sum(self.weights) * 2), "int8": _r(self.weights[0] + 2 * self.weights[1])},
            "moved_mb": {precision: round(self.megabytes(precision), 3) for precision in ("float16", "int8")},
            "devices": {device.name: self.on(device) for device in devices},
        }


def _r(size: int) -> float:
    return round(size / 1e6, 3)


def zoo_row(name: str, height: int | None, width: int | None, classes: int) -> Row:
    """Return the row of a model of the zoo with its decoder.

    Without a size it is the model's own, for a 4:3 image (nano) or a square.

    Raises:
        OVSDinoError: No such model, or a size that it cannot take.
    """
    with torch.device("meta"):
        model = build_model(name).eval()
    config = model.config
    patch = config.patch_size
    height = height or round(config.short_side / patch) * patch
    width = width or round(height * (4 / 3 if name == "nano" else 1) / patch) * patch
    for what, value in (("height", height), ("width", width)):
        if value < patch or value % patch:
            raise OVSDinoError(
                f"{what} is {value}: {name} needs a multiple of {patch}, for instance {near(value, patch)}"
            )
    if not 1 <= classes <= 100_000:
        raise OVSDinoError(f"classes is {classes}: expected 1 or more")
    vit = model.backbone.vit if isinstance(model.backbone, ViTBackbone) else None
    tokens = 0 if vit is None else height * width // patch**2 + vit.num_prefix_tokens
    parts = count(model, height, width, classes)
    return Row(
        model=name, height=height, width=width, classes=classes, tokens=tokens, parts=parts, weights=weights_of(model)
    )


def near(value: int, patch: int) -> int:
    return max(1, math.floor(value / patch + 0.5)) * patch


def plain_row(letter: str, height: int, width: int) -> Row:
    """Return the row of DINOv2's ViT-S/14 ("S") or ViT-B/14 ("B"), with a class token and no registers.

    Published figures count it so.
    """
    size = {"S": "small", "B": "base"}[letter]
    parts, *weights = plain_vit(f"vit_{size}_patch14_dinov2.lvd142m", height, width)
    tokens = height * width // 196 + 1
    return Row(
        model=f"ViT-{letter}/14",
        height=height,
        width=width,
        classes=None,
        tokens=tokens,
        parts=parts,
        weights=(weights[0], weights[1]),
    )


SIZES = ((448, 448), (518, 518), (448, 896))


def committed_rows() -> tuple[list[Row], list[Row]]:
    """Return the rows of the transformers by themselves, and of the zoo's models whole."""
    plain = [plain_row(letter, *size) for letter in "SB" for size in SIZES]
    zoo = [zoo_row("nano", 288, 384, 11), zoo_row("nano", None, None, 11)]
    zoo += [zoo_row(name, *size, 19) for name in ("s14", "b14") for size in SIZES]
    zoo += [zoo_row(name, 448, 448, 19) for name in ("l14", "s16v3", "b16v3")]
    return plain, zoo
