"""SAM's image encoder as a teacher, with which the structure tokens S are aligned.

The encoder is timm's (`samvit_*`, the same network as segment-anything's `ImageEncoderViT`); official
`sam_vit_*.pth` files and timm's hub weights both load. It is needed in training only.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.errors import OVSDinoError
from ovsdino.models.backbone import freeze
from ovsdino.models.weights import load_state, read_foreign

VARIANTS = {
    "vit_b": "samvit_base_patch16.sa1b",
    "vit_l": "samvit_large_patch16.sa1b",
    "vit_h": "samvit_huge_patch16.sa1b",
}
# segment-anything's Sam.pixel_mean and pixel_std, of 0..255 images
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class SAMEncoder(nn.Module):
    """SAM's image embedding of whole images (Kirillov et al. 2023).

    Args:
        variant: "vit_b", "vit_l" or "vit_h".
        img_size: Side of the padded square, 1024 in SAM; smaller ones are for tests.
    """

    def __init__(self, variant: str = "vit_b", *, img_size: int = 1024) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise OVSDinoError(f"unknown SAM variant {variant!r}; available: {', '.join(VARIANTS)}")
        self.img_size = img_size
        self.timm_name = VARIANTS[variant]
        # segment-anything normalizes with 1e-6; timm's default of 1e-5 shifts the embedding by 5e-5.
        norm = functools.partial(nn.LayerNorm, eps=1e-6)
        self.encoder: Any = timm.create_model(
            self.timm_name, pretrained=False, num_classes=0, img_size=img_size, norm_layer=norm
        )
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD)[:, None, None], persistent=False)
        freeze(self)

    def load(self, path: str | Path) -> None:
        """Load an official SAM checkpoint (`.pth`, keys `image_encoder.*`) or timm's safetensors.

        Raises:
            OVSDinoError: The file is missing, unreadable, or not this variant's weights.
        """
        state = read_foreign(path)
        prefix = "image_encoder."
        if any(key.startswith(prefix) for key in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            state = {k.replace("mlp.lin", "mlp.fc"): v for k, v in state.items()}
        load_state(self.encoder, state, str(path))

    def preprocess(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return SAM's input: longest side `img_size`, normalized, padded with zeros at the right and the bottom.

        Args:
            image: (B, 3, H, W) float RGB in 0..255.

        Returns:
            (B, 3, img_size, img_size), and the height and width that the image fills.
        """
        height, width = image.shape[-2:]
        scale = self.img_size / max(height, width)
        filled = (int(height * scale + 0.5), int(width * scale + 0.5))
        x = F.interpolate(image, filled, mode="bilinear", align_corners=False, antialias=True)
        x = (x - self.mean) / self.std
        return F.pad(x, (0, self.img_size - filled[1], 0, self.img_size - filled[0])), filled

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) float RGB in 0..255 to (B, 256, 64, 64) over the image itself, the padding cut away."""
        x, filled = self.preprocess(image)
        embedding = self.encoder.forward_features(x)
        cells = embedding.shape[-1] / self.img_size
        rows, columns = (max(1, round(side * cells)) for side in filled)
        return F.interpolate(embedding[..., :rows, :columns], (64, 64), mode="bilinear", align_corners=False)
