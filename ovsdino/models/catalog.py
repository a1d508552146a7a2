"""The catalog: the zoo's models by name, and what `ovsdino models` says of them. It needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ovsdino.errors import OVSDinoError
from ovsdino.models.config import BackboneConfig, ModelConfig, SAEConfig, ScoreAttentionConfig, SMDConfig, TextConfig
from ovsdino.models.shipped import packaged

__all__ = ["CONFIGS", "NANO", "PROJECTIONS", "ModelInfo", "get_config", "list_models"]

NANO = ModelConfig(
    name="nano",
    backbone=BackboneConfig(
        timm_name="tf_efficientnet_lite0.in1k",
        patch_size=16,
        embed_dim=256,
        depth=5,
        taps=(1, 2, 3),
        stage_dims=(16, 24, 40, 112, 320),
        stage_strides=(2, 4, 8, 16, 32),
    ),
    sae=SAEConfig(guide_dim=48, mid_dim=96, structure_dim=192, blocks=(1, 1, 1)),
    smd=SMDConfig(width=128, blocks=1),
    text=TextConfig(kind="lexicon", width=192, buckets=4096, entries=38577, common=12000, kept=2577),
    score_attention=ScoreAttentionConfig(mix=0.5),
    short_side=352,
    contrast=True,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)

# A ViT small enough to train on a CPU, for studies: no weights are shipped for it.
VIT6 = ModelConfig(
    name="vit6",
    backbone=BackboneConfig(
        timm_name="small_vit", patch_size=16, embed_dim=256, width=192, depth=6, num_heads=3, taps=(0, 2, 4, 5)
    ),
    sae=SAEConfig(guide_dim=48, mid_dim=96, structure_dim=192, blocks=(1, 2, 2), depthwise=False),
    smd=SMDConfig(width=192),
    text=NANO.text,
    short_side=352,
)

# Frozen, in front of a linear head into the sentence encoder's own space: the test bed of weak supervision.
LITE2 = ModelConfig(
    name="lite2",
    backbone=BackboneConfig(
        timm_name="tf_efficientnet_lite2.in1k",
        patch_size=16,
        embed_dim=384,
        depth=5,
        taps=(1, 2, 3, 4),
        stage_dims=(16, 24, 48, 120, 352),
        stage_strides=(2, 4, 8, 16, 16),
    ),
    sae=SAEConfig(guide_dim=32, mid_dim=64, structure_dim=128),
    smd=SMDConfig(width=128, blocks=1),
    detail=False,
    text=TextConfig(kind="sentence"),
    short_side=352,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def _vit(name: str, timm_name: str, patch: int, dim: int, heads: int, *, depth: int = 12) -> ModelConfig:
    taps = tuple(depth * (i + 1) // 4 - 1 for i in range(4))  # 12 blocks: 2, 5, 8, 11
    backbone = BackboneConfig(
        timm_name=timm_name, patch_size=patch, embed_dim=dim, num_heads=heads, depth=depth, taps=taps
    )
    # At every second pixel: 150 classes at 448 x 448 are then within the budget, 4.6 % of b14's FLOPs and not 5.7.
    return ModelConfig(name=name, backbone=backbone, score_attention=ScoreAttentionConfig(query_stride=2))


CONFIGS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        NANO,
        _vit("s14", "vit_small_patch14_reg4_dinov2.lvd142m", 14, 384, 6),
        _vit("b14", "vit_base_patch14_reg4_dinov2.lvd142m", 14, 768, 12),
        _vit("l14", "vit_large_patch14_reg4_dinov2.lvd142m", 14, 1024, 16, depth=24),
        _vit("s16v3", "vit_small_patch16_dinov3.lvd1689m", 16, 384, 6),
        _vit("b16v3", "vit_base_patch16_dinov3.lvd1689m", 16, 768, 12),
        LITE2,
        VIT6,
    )
}

# Talk2DINO's models on the hub; their files hold DINO and CLIP too, of which only `proj.*` is read.
PROJECTIONS = {
    "b14": "lorebianchi98/Talk2DINO-ViTB",
    "l14": "lorebianchi98/Talk2DINO-ViTL",
    "b16v3": "lorebianchi98/Talk2DINOv3-ViTB",
}


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A line of `ovsdino models`."""

    name: str
    backbone: str
    patch_size: int
    embed_dim: int
    params_million: float | None
    weights: str
    note: str


def list_models() -> list[ModelInfo]:
    """Return the models of the zoo, the shipped one first."""
    rows = []
    for name, config in CONFIGS.items():
        shipped = packaged(name)
        rows.append(
            ModelInfo(
                name=name,
                backbone=config.backbone.timm_name,
                patch_size=config.patch_size,
                embed_dim=config.embed_dim,
                params_million=shipped.parameters / 1e6 if shipped else None,
                weights="shipped" if shipped else "own" if config.text.stored else "hub",
                note=_note(name),
            )
        )
    return rows


def _note(name: str) -> str:
    """Return the remark of `ovsdino models` on a model."""
    if name == "nano":
        return "streets and common objects, works offline"
    if name == "vit6":
        return "a ViT of 2.9 M parameters, for studies: needs a checkpoint of your own (--checkpoint FILE)"
    if get_config(name).text.kind == "sentence":
        return "frozen ImageNet CNN and MiniLM, for studies: needs a trained head (--projection) and ovsdino[sentence]"
    if name in PROJECTIONS:
        return "the Talk2DINO baseline until a decoder is trained; needs ovsdino[clip]"
    return "needs your own projection (--projection FILE): none is published for this backbone; needs ovsdino[clip]"


def get_config(name: str) -> ModelConfig:
    """Return the configuration of a zoo model.

    Raises:
        OVSDinoError: There is no such model.
    """
    try:
        return CONFIGS[name]
    except KeyError:
        raise OVSDinoError(f"unknown model {name!r}; available: {', '.join(CONFIGS)}") from None
