"""A convolutional network as a CPU runs it fastest: batch norm folded into the convolutions, the activation fused.

    conv(x, W) * g + h = conv(x, g W) + h        g = gamma / sqrt(var + eps), h = beta - g mean

`fold_norms` does that alone, with PyTorch's own convolutions, for exporters. The arithmetic is that of the network but
for roundings. In `folded` weights are stored once more, in oneDNN's own layout; the network itself, and the keys of its
state, stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ovsdino.models.efficientnet import SameConv
from ovsdino.ops.compat import inferring

# First convolutions that stay in float32 under autocast. On four images of CamVid bfloat16 in nano's stem and first two
# groups changes 0.28 % of the labels, in each later part of the network 0.03 to 0.07 %.
EXACT = 15

__all__ = ["FoldedForms", "by_pixel", "computes_bfloat16", "fold_norms", "folded"]


def computes_bfloat16() -> bool:
    """Return whether this CPU multiplies in bfloat16 (AVX512_BF16 or AMX) and does not emulate it.

    On an AMD EPYC with AVX512_BF16 nano took 0.8 of float32's time, end to end, with three convolutions in float32.
    """
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def by_pixel(image: Tensor) -> Tensor:
    """Return an image in the layout that the CPU's convolutions are fastest in, channels last; elsewhere as it is."""
    return image.contiguous(memory_format=torch.channels_last) if image.device.type == "cpu" else image


class FoldedForms:
    """The folded forms of a network, one a dtype and number of threads.

    They are made when first asked for, and again when the weights have changed. It holds no state of the model: a copy
    or a pickle of it is empty.
    """

    def __init__(self) -> None:
        self._forms: dict[tuple[torch.dtype, int], tuple[tuple[tuple[int, int], ...], nn.Module]] = {}

    def __reduce__(self) -> tuple[type[FoldedForms], tuple[()]]:
        return FoldedForms, ()

    def of(self, network: nn.Module, image: Tensor) -> tuple[nn.Module, Tensor]:
        """Return the network, or its folded form, and the image (B, 3, H, W) in the layout that it takes.

        The folded form serves inference mode on a CPU, in eval mode. Under autocast its weights are cast once, where
        autocast would cast them at every call.
        """
        image = by_pixel(image)
        if network.training or image.device.type != "cpu" or not inferring():
            return network, image
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else image.dtype
        if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.enabled:
            return network, image
        tensors = (*network.parameters(), *network.buffers())
        if any(tensor.is_inference() for tensor in tensors):  # they keep no count of their changes
            return network, image
        state = tuple((id(tensor), tensor._version) for tensor in tensors)
        # oneDNN lays out weights for a number of threads: nano's, laid out for one, take 51 ms on two in place of 35.
        key = dtype, torch.get_num_threads()
        known = self._forms.get(key)
        if known is None or known[0] != state:
            known = self._forms[key] = state, folded(network, dtype)
        return known[1], image


def folded(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a copy in which each convolution that a batch norm follows, in the same module, is one call.

    Args:
        network: A network in eval mode on a CPU, whose batch norms come right after their convolutions.
        dtype: Of the copy's weights and arithmetic: float32 or bfloat16; the first `EXACT` stay in float32.
    """
    made = copy.deepcopy(network).to(dtype)
    own = dict(network.named_modules())
    exact = [path for path, module in own.items() if isinstance(module, nn.Conv2d)][:EXACT]
    for path, parent, conv, norm in [*_pairs(made)]:
        kind = torch.float32 if path + conv in exact else dtype
        setattr(parent, conv, _Convolution(own[path + conv], own[path + norm], kind))
        setattr(parent, norm, nn.Identity())
    return made


def fold_norms(network: nn.Module) -> nn.Module:
    """Fold each batch norm that follows a convolution, in the same module, into that convolution, in place.

    Args:
        network: A network in eval mode. Its norms' activations stay.

    Returns:
        The network.
    """
    for _, parent, name, norm_name in [*_pairs(network)]:
        conv, norm = getattr(parent, name), getattr(parent, norm_name)
        weight, bias = _fused(conv, norm)
        conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
    return network


def _pairs(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, str]]:
    """Yield each convolution that a batch norm follows: path of its parent with a dot, parent, and the two names."""
    for path, parent in network.named_modules():
        before = ""
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                before = name
            elif isinstance(child, nn.BatchNorm2d) and before:
                yield f"{path}." if path else "", parent, before, name
                before = ""


def _fused(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with its batch norm."""
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return weight.detach(), bias.detach()


class _Convolution(nn.Module):
    """Convolution, batch norm and activation in one call of oneDNN."""

    def __init__(self, conv: Any, norm: Any, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias = _fused(conv, norm)
        self.weight = weight.to(dtype)
        self.bias = bias.to(dtype)
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.padding, self.kernel_size = conv.padding, conv.kernel_size
        # Ours and timm's: what to add depends on the image's size.
        self.same = isinstance(conv, SameConv) or type(conv).__name__ == "Conv2dSame"
        act = getattr(norm, "act", nn.Identity())
        self.attribute, self.scalars = ("hardtanh", [0.0, 6.0]) if isinstance(act, nn.ReLU6) else ("none", [])
        self.act = nn.Identity() if self.scalars else act
        self._packed: dict[tuple[bool, bool], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to what the three modules give."""
        x = x.to(self.bias.dtype)
        padding, longer = self._padding(x)
        if longer not in self._packed:
            # A row of zeros before the weights in place of one less before the image: padding that is the same at both
            # ends, as oneDNN's call takes it. To pad the map itself would copy it.
            weight = F.pad(self.weight, (int(longer[1]), 0, int(longer[0]), 0)).to_mkldnn()
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # whose stub lacks the last argument
            self._packed[longer] = reorder(weight, padding, self.stride, self.dilation, self.groups, x.shape)
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x,
            self._packed[longer],
            self.bias,
            padding,
            self.stride,
            self.dilation,
            self.groups,
            self.attribute,
            self.scalars,
            "",
        )
        out: Tensor = self.act(y)
        return out

    def _padding(self, x: Tensor) -> tuple[list[int], tuple[bool, bool]]:
        """Return the padding of each axis, and whether the kernel is longer by a zero there."""
        if not self.same:
            return [*self.padding], (False, False)
        sides = zip(x.shape[2:], self.stride, self.kernel_size, self.dilation, strict=True)
        whole = [max((-(-side // step) - 1) * step + (k - 1) * d + 1 - side, 0) for side, step, k, d in sides]
        return [-(-total // 2) for total in whole], (whole[0] % 2 == 1, whole[1] % 2 == 1)
