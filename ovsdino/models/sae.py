"""Structure-Aware Encoder (SAE): restores the boundaries that a deep ViT has lost.

A pixel stem reads the image at four times the token grid and goes down to the grid by way of twice the grid; a tap of
the backbone joins it at the level that has its resolution (a ViT's at the grid, a CNN's stages of stride 4, 8 and 16 at
all three); a top-down path carries all of it back to the stem's resolution. Outputs: the guide G, structure tokens S
(aligned with SAM's image embedding) and boundary logits. OVS-DINO (arXiv 2604.08461) names the module; where its text
is silent, the wiring is this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.errors import OVSDinoError
from ovsdino.models.config import SAEConfig
from ovsdino.models.folded import by_pixel
from ovsdino.ops.compat import exporting


@dataclass
class Structure:
    """Output of the SAE.

    Attributes:
        tokens: S, (B, structure_dim, h, w).
        guide: G, (B, guide_dim, 4h, 4w).
        boundary: Boundary logits, (B, 1, 4h, 4w).
    """

    tokens: Tensor
    guide: Tensor
    boundary: Tensor


def norm(channels: int) -> nn.Module:
    """Return a normalization independent of the batch: training runs on small batches, deployment on one image."""
    return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)


def conv(c_in: int, c_out: int, *, stride: int = 1, depthwise: bool = False) -> nn.Sequential:
    """Return a 3x3 convolution (dense, or depthwise then pointwise), normalization, GELU."""
    if depthwise:
        layers: list[nn.Module] = [
            nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False),
            nn.Conv2d(c_in, c_out, 1, bias=False),
        ]
    else:
        layers = [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)]
    return nn.Sequential(*layers, norm(c_out), nn.GELU())


class ResidualBlock(nn.Module):
    """Add two convolutions to their input: x + conv(conv(x))."""

    def __init__(self, channels: int, *, depthwise: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(*(conv(channels, channels, depthwise=depthwise) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w)."""
        return x + self.body(x)


def stage(channels: int, blocks: int, *, depthwise: bool) -> nn.Sequential:
    """Return residual blocks in a row."""
    return nn.Sequential(*(ResidualBlock(channels, depthwise=depthwise) for _ in range(blocks)))


class StructureAwareEncoder(nn.Module):
    """Map an image and the backbone's taps to a `Structure`.

    Args:
        config: What to build.
        tap_dims: Channels of each tap.
        scales: Side of each tap in token grids, by which it finds its level: 1, 2 or 4.

    Raises:
        OVSDinoError: A tap has another scale.
    """

    def __init__(self, config: SAEConfig, tap_dims: Sequence[int], scales: Sequence[float]) -> None:
        super().__init__()
        self.config = config
        fine, mid, deep, dw = config.guide_dim, config.mid_dim, config.structure_dim, config.depthwise
        self.stem = nn.Sequential(conv(3, fine // 2, stride=2), conv(fine // 2, fine, stride=2))
        self.stage4 = stage(fine, config.blocks[0], depthwise=dw)
        self.down2 = conv(fine, mid, stride=2, depthwise=dw)
        self.stage2 = stage(mid, config.blocks[1], depthwise=dw)
        self.down1 = conv(mid, deep, stride=2, depthwise=dw)
        self.stage1 = stage(deep, config.blocks[2], depthwise=True)
        widths = {4: fine, 2: mid, 1: deep}
        if unknown := [scale for scale in scales if scale not in widths]:
            raise OVSDinoError(
                f"taps: a tap at {unknown[0]:g} times the token grid has no level; expected 4, 2 or 1 times"
            )
        self.scales = tuple(int(scale) for scale in scales)
        self.taps = nn.ModuleList(nn.Linear(dim, widths[s]) for dim, s in zip(tap_dims, self.scales, strict=True))
        self.merge = ResidualBlock(deep, depthwise=True)
        self.up2 = nn.Conv2d(deep, mid, 1)
        self.merge2 = conv(mid, mid, depthwise=dw)
        self.up4 = nn.Conv2d(mid, fine, 1)
        self.merge4 = conv(fine, fine, depthwise=dw)
        self.boundary = nn.Conv2d(fine, 1, 1)

    def forward(self, image: Tensor, taps: Sequence[Tensor]) -> Structure:
        """Encode structure.

        Args:
            image: (B, 3, H, W) normalized; resized here to 16 times the token grid when it has another size.
            taps: Each (B, tap_dims[i], scales[i] h, scales[i] w), shallow first.
        """
        h, w = (side // self.scales[0] for side in taps[0].shape[-2:])
        if image.shape[-2:] != (16 * h, 16 * w):
            image = F.interpolate(image, (16 * h, 16 * w), mode="bilinear", align_corners=False)
        fine = self._with_taps(self.stage4(self.stem(by_pixel(image))), taps, 4)
        mid = self._with_taps(self.stage2(self.down2(fine)), taps, 2)
        deep = self._with_taps(self.stage1(self.down1(mid)), taps, 1)
        tokens = self.merge(deep)
        mid = self.merge2(mid + F.interpolate(self.up2(tokens), scale_factor=2.0, mode="bilinear"))
        guide = self.merge4(fine + F.interpolate(self.up4(mid), scale_factor=2.0, mode="bilinear"))
        return Structure(tokens=tokens, guide=guide, boundary=self.boundary(guide))

    def _with_taps(self, x: Tensor, taps: Sequence[Tensor], scale: int) -> Tensor:
        """Return a level (B, C, H, W) and the projections of the taps that have its resolution, added up.

        In a graph they are 1x1 convolutions: OpenVINO lays out a linear map's input anew (nano: 0.8 ms of 20).
        """
        for project, tap, own in zip(self.taps, taps, self.scales, strict=True):
            if own == scale and exporting():
                weight: Any = project.weight
                bias: Any = project.bias
                x = x + F.conv2d(tap, weight[:, :, None, None], bias)
            elif own == scale:
                x = x + project(tap.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        return x
