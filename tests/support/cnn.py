"""A whole model on a CNN, lite2 in small: timm's own smallest network of the class of the EfficientNet-Lites."""

from __future__ import annotations

from dataclasses import replace

from ovsdino.models.config import BackboneConfig, ModelConfig, SAEConfig, SMDConfig, TextConfig
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.text import HashedTextTower

NAME = "test_efficientnet.r160_in1k"
CNN = BackboneConfig(
    timm_name=NAME,
    patch_size=16,
    embed_dim=32,
    depth=5,
    taps=(1, 2, 3, 4),
    stage_dims=(16, 24, 32, 48, 64),
    stage_strides=(2, 4, 8, 16, 16),
)
# Its last stage has the stride 32, as nano's has.
JOINED = replace(CNN, taps=(1, 2, 3), stage_strides=(2, 4, 8, 16, 32))


def small_model_on(backbone: BackboneConfig) -> OVSDINO:
    """Return a model of width 32 on a backbone, with random weights, in eval mode."""
    config = ModelConfig(
        name="small",
        backbone=backbone,
        sae=SAEConfig(guide_dim=16, mid_dim=16, structure_dim=32),
        smd=SMDConfig(width=32, heads=2, head_dim=8, structure_rank=7, value_dim=16, blocks=1),
        text=TextConfig(kind="hashed", width=16, buckets=64),
        short_side=48,
    )
    return OVSDINO(config, HashedTextTower(32, 16, 64)).eval()
