"""EfficientNet-Lite, written out: nano's backbone without timm, whose import costs more than the network.

Tan and Le (ICML 2019); the Lite variants have ReLU6 in place of swish and no squeeze-and-excitation. Keys and
results are those of timm's `tf_efficientnet_lite*`, bit for bit. timm imports torchvision, and that `torch._dynamo`:
2.3 s of processor time, where torch itself takes 1.9 s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WIDTHS", "EfficientNetLite"]

STEM, FEATURES, EXPANSION = 32, 1280, 6
KERNELS, STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
ENDS = (0, 1, 2, 4, 6)  # the last group of each stage, after which the map shrinks
# Channels and blocks of each of seven groups, by timm's name.
WIDTHS = {
    "tf_efficientnet_lite0.in1k": ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    "tf_efficientnet_lite2.in1k": ((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
}


class SameConv(nn.Conv2d):
    """A convolution without bias padded as TensorFlow does: H/stride rows out, rounded up, odd padding below and right.

    Args:
        inside: Channels in.
        outside: Channels out.
        kernel: Side of the kernel, odd.
        stride: Step.
        dilation: Distance of the kernel's taps.
        groups: As of `torch.nn.Conv2d`.
    """

    def __init__(
        self, inside: int, outside: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        padding = dilation * (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(inside, outside, kernel, stride, padding, dilation, groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W)."""
        if self.stride[0] > 1:
            down, across = (self._missing(side) for side in x.shape[-2:])
            x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(x)

    def _missing(self, side: int) -> int:
        """Return by how many pixels a side is short of what the kernel covers."""
        step, reach = self.stride[0], (self.kernel_size[0] - 1) * self.dilation[0]
        assert reach >= step - 1
        return reach - (side - 1) % step  # in whole numbers, which a tracer can follow


class Norm(nn.BatchNorm2d):
    """A batch norm and what follows it.

    Args:
        channels: Of the map.
        linear: Nothing follows; otherwise ReLU6.
    """

    def __init__(self, channels: int, *, linear: bool = False) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = nn.Identity() if linear else nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W)."""
        out: Tensor = self.act(super().forward(x))
        return out


class Separable(nn.Module):
    """A depthwise convolution and a linear map of the channels: the first block."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv_dw = SameConv(inside, inside, kernel, stride, dilation, inside)
        self.bn1 = Norm(inside)
        self.conv_pw = SameConv(inside, outside, 1)
        self.bn2 = Norm(outside, linear=True)
        self.skips = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W)."""
        out: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))
        return out + x if self.skips else out


class Inverted(nn.Module):
    """An inverted residual: six times the channels, a depthwise convolution, and a linear map back."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        middle = EXPANSION * inside
        self.conv_pw = SameConv(inside, middle, 1)
        self.bn1 = Norm(middle)
        self.conv_dw = SameConv(middle, middle, kernel, stride, dilation, middle)
        self.bn2 = Norm(middle)
        self.conv_pwl = SameConv(middle, outside, 1)
        self.bn3 = Norm(outside, linear=True)
        self.skips = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W)."""
        wide = self.bn1(self.conv_pw(x))
        wide = self.bn2(self.conv_dw(wide))
        out: Tensor = self.bn3(self.conv_pwl(wide))
        return out + x if self.skips else out


class EfficientNetLite(nn.Module):
    """Features of an EfficientNet-Lite and the maps of its five stages.

    Args:
        name: One of `WIDTHS`.
        output_stride: Stride of the last map, 16 or 32; at 16 the last stage is dilated in place of its step.

    Attributes:
        num_features: Channels of the final map.
        feature_info: (channels, stride) of each stage.
    """

    def __init__(self, name: str, output_stride: int = 32) -> None:
        super().__init__()
        self.num_features = FEATURES
        self.conv_stem = SameConv(3, STEM, 3, 2)
        self.bn1 = Norm(STEM)
        inside, reached, dilation = STEM, 2, 1
        groups: list[nn.Module] = []
        strides: list[int] = []
        for place, (outside, depth) in enumerate(zip(*WIDTHS[name], strict=True)):
            kind = Inverted if place else Separable
            step, later = STRIDES[place], dilation
            if reached * step > output_stride:  # the first block keeps the taps of the group before it
                step, later = 1, dilation * step
            reached *= step
            blocks = [kind(inside, outside, KERNELS[place], step, dilation)]
            dilation, inside = later, outside
            blocks += [kind(outside, outside, KERNELS[place], 1, dilation) for _ in range(depth - 1)]
            groups.append(nn.Sequential(*blocks))
            strides.append(reached)
        self.blocks = nn.Sequential(*groups)
        self.feature_info = [(WIDTHS[name][0][end], strides[end]) for end in ENDS]
        self.conv_head = SameConv(inside, FEATURES, 1)
        self.bn2 = Norm(FEATURES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # by the channels out, as EfficientNets start
                fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan))

    def forward_intermediates(self, image: Tensor, indices: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """Return the final map (B, 1280, h, w) of an image (B, 3, H, W), and those of chosen stages, shallow first."""
        wanted = {ENDS[index] for index in indices}
        x = self.bn1(self.conv_stem(image))
        kept: list[Tensor] = []
        for place, group in enumerate(self.blocks):
            x = group(x)
            if place in wanted:
                kept.append(x)
        return self.bn2(self.conv_head(x)), kept

    def forward_features(self, image: Tensor) -> Tensor:
        """Return the final map (B, 1280, h, w) of an image (B, 3, H, W)."""
        return self.forward_intermediates(image)[0]
