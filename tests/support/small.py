"""A whole model, small enough to export in seconds, with weights of a sensible size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ovsdino.deploy.export.random_weights import randomize
from ovsdino.models.backbone import freeze
from ovsdino.models.config import BackboneConfig, ModelConfig, SAEConfig, SMDConfig, TextConfig
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.text import HashedTextTower

CONFIG = ModelConfig(
    name="small",
    backbone=BackboneConfig(timm_name="small_vit", patch_size=16, embed_dim=32, depth=2, num_heads=2, taps=(0, 1)),
    sae=SAEConfig(guide_dim=16, mid_dim=16, structure_dim=32),
    smd=SMDConfig(width=32, heads=2, head_dim=8, structure_rank=7, value_dim=16, blocks=1),
    text=TextConfig(kind="hashed", width=16, buckets=64),
    short_side=48,
)
SIZE = {"height": 48, "width": 80}  # 3x5 tokens: odd, so that the last tiles of the upsampling are padded


def small_model(*, decoder: bool = True, **changes: Any) -> OVSDINO:
    config = CONFIG.changed(changes) if decoder else replace(CONFIG, sae=None, smd=None)
    model = OVSDINO(config, HashedTextTower(32, 16, 64))
    freeze(model)
    return randomize(model, 0)
