"""Model configurations: frozen, keyword-only dataclasses. The zoo names instances of `ModelConfig`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ovsdino.errors import OVSDinoError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A timm vision transformer and the blocks whose tokens the decoder taps.

    Attributes:
        timm_name: timm model name, or "nano_vit" for this repository's own small ViT.
        patch_size: patch size p in pixels.
        embed_dim: width D.
        taps: indices of the blocks whose patch tokens feed the Structure-Aware Encoder, shallow first.
    """

    timm_name: str
    patch_size: int
    embed_dim: int
    taps: tuple[int, ...] = (2, 5, 8, 11)
    depth: int = 12
    num_heads: int = 12


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """Structure-Aware Encoder: pixel stem, top-down path, guide, structure tokens, boundary logits.

    Attributes:
        guide_dim: channels of the guide G at four times the token grid.
        mid_dim: channels at twice the token grid.
        structure_dim: channels of the structure tokens S (SAM's embedding width is 256).
        blocks: residual convolution blocks at 4x, 2x and 1x the token grid.
        depthwise: depthwise-separable convolutions (cheap in FLOPs) or dense 3x3 ones (cheap in seconds on a CPU).
        source: "distilled" (SAM is needed in training only) or "sam" (SAM's embedding is also an input).
    """

    guide_dim: int = 64
    mid_dim: int = 96
    structure_dim: int = 256
    blocks: tuple[int, int, int] = (0, 1, 1)
    depthwise: bool = True
    source: str = "distilled"


@dataclass(frozen=True, kw_only=True)
class SMDConfig:
    """Structure-Modulated Decoder: `blocks` transformer blocks of structure attention on the patch tokens.

    Head sizes obey d + r + 1 = 64, so that folded attention is one plain dot product of 64 channels.

    Attributes:
        gate: the preservation gate; False lets every head through (g = 1).
        structure: the structural term; False is plain attention (lambda = 0).
    """

    width: int = 256
    blocks: int = 2
    heads: int = 4
    head_dim: int = 48
    structure_rank: int = 15
    value_dim: int = 64
    mlp_ratio: float = 2.0
    gate: bool = True
    structure: bool = True


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text tower: "clip" (open_clip ViT-B-16, Talk2DINO's projection) or "hashed" (the tiny shipped tower)."""

    kind: str = "clip"
    width: int = 512
    buckets: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to build an `OVSDINO`.

    Attributes:
        sae: None for the text-aligned-DINO baseline, which has no decoder at all.
        smd: None leaves the tokens as the backbone gives them.
        guided: structure-guided upsampling of the logits; False is bilinear.
        detail: the guide's own residual on the fine logits.
        short_side: default inference size of the image's short side, in pixels.
        logit_scale: temperature at the start of training (cosine is multiplied by it).
    """

    name: str
    backbone: BackboneConfig
    sae: SAEConfig | None = field(default_factory=SAEConfig)
    smd: SMDConfig | None = field(default_factory=SMDConfig)
    text: TextConfig = field(default_factory=TextConfig)
    guided: bool = True
    detail: bool = True
    short_side: int = 448
    logit_scale: float = 20.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def patch_size(self) -> int:
        return self.backbone.patch_size

    @property
    def embed_dim(self) -> int:
        return self.backbone.embed_dim

    def replace(self, **changes: Any) -> ModelConfig:
        return dataclasses.replace(self, **changes)

    def changed(self, changes: Mapping[str, Any]) -> ModelConfig:
        """With some fields replaced, e.g. ``{"smd": {"gate": False}, "backbone": {"taps": [5]}, "detail": False}``.

        Raises:
            OVSDinoError: no such field, or one inside a part that is not there.
        """
        return _changed(self, changes, self.name)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _changed(part: Any, changes: Mapping[str, Any], where: str) -> Any:
    known = {f.name for f in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else set()
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            listed = ", ".join(sorted(known)) or f"none, it is {part!r}"
            raise OVSDinoError(f"{where}: no field {name!r}; fields: {listed}")
        if isinstance(value, Mapping):
            value = _changed(getattr(part, name), value, f"{where}.{name}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(part, **values)
