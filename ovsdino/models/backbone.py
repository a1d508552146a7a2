"""Backbones: timm vision transformers read through `forward_intermediates`, in eval mode and frozen unless asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ovsdino.config import BackboneConfig


def nano_vit(config: BackboneConfig) -> VisionTransformer:
    """The own backbone of `nano`: a plain ViT without class token, positions interpolated to the input's grid."""
    return VisionTransformer(
        img_size=(288, 384),
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        num_classes=0,
        class_token=False,
        global_pool="",
        fc_norm=False,
        dynamic_img_size=True,
        init_values=None,
    )


class Backbone(nn.Module):
    """Patch tokens of a ViT after its final norm, and of the tapped blocks before it."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.vit: Any  # timm's forward_intermediates has no one return type
        self.head: nn.Linear | None = None
        if config.timm_name == "nano_vit":
            self.vit = nano_vit(config)
            # nano's linear head: the ViT is trained against a fixed text space, so the map into it is the backbone's.
            self.head = nn.Linear(config.embed_dim, config.embed_dim)
        else:
            # Positions are interpolated to the input's grid; DINOv2's own size would be 518.
            self.vit = timm.create_model(config.timm_name, pretrained=False, num_classes=0, dynamic_img_size=True)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """image (B, 3, H, W), H and W multiples of the patch size -> F (B, D, h, w) and the taps, each (B, D, h, w)."""
        return self.with_taps(image, self.config.taps)

    def with_taps(self, image: Tensor, blocks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """As `forward`, with the tokens of chosen blocks."""
        p = self.config.patch_size
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % p or image.shape[3] % p or 0 in image.shape[2:]:
            raise ValueError(f"image must be (B, 3, H, W) with H and W multiples of {p}, got {tuple(image.shape)}")
        final, taps = self.vit.forward_intermediates(image, indices=list(blocks), norm=False)
        prefix = self.vit.num_prefix_tokens
        h, w = image.shape[2] // p, image.shape[3] // p
        if final.shape[1] == h * w + prefix:
            final = final[:, prefix:]
        if self.head is not None:
            final = self.head(final)
        return final.transpose(1, 2).reshape(-1, self.config.embed_dim, h, w), list(taps)


def normalise(x: Tensor, dim: int = 1) -> Tensor:
    """L2 normalisation, safe at zero."""
    return F.normalize(x, dim=dim, eps=1e-6)


def freeze(module: nn.Module) -> nn.Module:
    """Eval mode, no gradients."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


__all__ = ["Backbone", "freeze", "nano_vit", "normalise", "num_parameters"]
